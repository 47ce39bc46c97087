"""The server starts, and answers as it does elsewhere, on machines that lack something.

Each case is the server as a process of its own, in a place that is made for it. Of the starts in
the default tier each lacks several things; the long version tries every lack alone, in both dtypes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.groups import limited_groups
from tests.helpers.shadows import write_shadows
from tests.integration.reference import Reference
from tests.integration.server import COMMAND, Server, environment
from tgi_async.text.tokenizer import Tokenizer

pytestmark = pytest.mark.model

SMALL = (
    *("--max-concurrent-requests", "2", "--max-batch-prefill-tokens", "16"),
    *("--max-total-tokens", "256"),
)
PROMPT = "The capital of France is"
TOKENS = 12
NO_COMPILER = "no C compiler (cc, gcc or clang) is installed"
FOR_THIS_RUN = "the C kernels were compiled for this run alone"
NOWHERE = "/proc/version/cache"
"""Nothing can be below a file."""
PROGRAMS = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Lack:
    """What a machine lacks, and what the server says of it."""

    variables: Mapping[str, str | None] = field(default_factory=dict)
    """To set, or to unset where they are None."""
    script: str = ""
    """Of the shell, run before."""
    cut_off: bool = False
    """In a mount namespace: mounts there reach nobody else."""
    stranger: bool = False
    """As a user that the system does not know and permissions hold for, also where this is root."""
    said: tuple[str, ...] = ()

    def __or__(self, other: Lack) -> Lack:
        return Lack(
            {**self.variables, **other.variables},
            self.script + other.script,
            self.cut_off or other.cut_off,
            self.stranger or other.stranger,
            self.said + other.said,
        )

    def within(self, temporary: Path) -> list[str]:
        """A command that runs the one behind it there. Skips the test where the kernel forbids."""
        unshare = shutil.which("unshare") or "unshare"
        lines = ("wanted=$PATH", f"PATH={PROGRAMS}", self.script, 'PATH=$wanted exec "$@"')
        command = ["/bin/sh", "-ec", "\n".join(lines), "sh"]
        if self.stranger:
            command += [unshare, "--user", "--map-user=12345", "--map-group=12345", "--"]
        if self.cut_off:
            as_root = ["--map-root-user"] if os.geteuid() else []
            command[:0] = [unshare, "--mount", *as_root, "--"]
        if self.stranger or self.cut_off:
            try:
                subprocess.run(
                    [*command, "/bin/true"],
                    env=environment() | {"TMPDIR": str(temporary)},
                    check=True,
                    capture_output=True,
                    text=True,
                )
            except (OSError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", None) or error
                pytest.skip(f"no such namespace can be made here: {why}")
        return command


READ_ONLY = (
    "mount --make-rprivate /\n"
    "mount -t tmpfs -o size=4k,mode=1777 tmpfs /dev/shm\n"
    "for at in $(cut -d' ' -f5 /proc/self/mountinfo); do\n"
    '  case $at in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$at" ;; esac\n'
    "done\n"
)
"""Everything but /dev/shm, which has room for one page."""

LACKS = {
    "compiler": Lack({"PATH": "/nonexistent", "TGI_ASYNC_CACHE": NOWHERE}, said=(NO_COMPILER,)),
    "cache": Lack({"TGI_ASYNC_CACHE": NOWHERE}, said=(FOR_THIS_RUN,)),
    "HOME": Lack({"HOME": None}),
    "home that can be written": Lack(
        {"HOME": "/proc/version", "TGI_ASYNC_CACHE": None}, said=(FOR_THIS_RUN,)
    ),
    "home": Lack({"HOME": None, "TGI_ASYNC_CACHE": None}, stranger=True, said=(FOR_THIS_RUN,)),
    "TMPDIR": Lack({"TMPDIR": "/proc/version"}, said=("temporary files go to /tmp, not to ",)),
    "files": Lack({"TMPDIR": None}, READ_ONLY, cut_off=True, stranger=True),
    "files that may be loaded": Lack(
        {"TGI_ASYNC_CACHE": NOWHERE},
        'mount --make-rprivate /\nmount -t tmpfs -o noexec tmpfs "$TMPDIR"\n',
        cut_off=True,
        said=("that is writable, has space and is not mounted noexec",),
    ),
    "permissions": Lack(script="umask 0777\n", stranger=True),
    "permissions of others": Lack(script="umask 077\n"),
    "asserts": Lack({"PYTHONOPTIMIZE": "1"}),
    "docstrings": Lack({"PYTHONOPTIMIZE": "2"}),
    "working directory": Lack(script='cd "$(mktemp -d)"\nrmdir "$PWD"\n'),
    "standard streams": Lack(script="exec <&- >&-\n"),
}

Start = Callable[..., str]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name."""
    return tmp_path_factory.mktemp("d")


@pytest.fixture
def start(place: Path, model_folder: Path, tokenizer: Tokenizer, reference: Reference) -> Start:
    """Start the server somewhere, ask it, stop it, and give its log; it leaves no file."""

    def run(lack: Lack, dtype: str, *flags: str, cwd: Path | None = None) -> str:
        temporary = place / "t"
        temporary.mkdir()
        with Server.running(
            place / "log",
            *(*SMALL, "--dtype", dtype, *flags),
            within=lack.within(temporary),
            variables={"TMPDIR": str(temporary), **lack.variables},
            cwd=cwd,
        ) as server:
            emitted = ask(server)
        assert list(temporary.iterdir()) == []
        assert "Traceback" not in server.log
        for words in lack.said:
            assert words in server.log
        if dtype == "float32":
            reference.compare(tokenizer.encode(PROMPT), emitted)
        return server.log

    return run


def ask(server: Server) -> list[int]:
    """The tokens behind PROMPT. Also have it render a template and follow a grammar, which other
    processes of it take part in."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        parameters = {"max_new_tokens": TOKENS, "details": True}
        reply = client.post("/generate", json={"inputs": PROMPT, "parameters": parameters})
        assert reply.status_code == 200, server.log
        emitted = [token["id"] for token in reply.json()["details"]["tokens"]]
        assert len(emitted) == TOKENS
        body = {
            "messages": [{"role": "user", "content": "One number."}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}},
        }
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, server.log
        assert json.loads(reply.json()["choices"][0]["message"]["content"]) == 7
    return emitted


def test_without_a_compiler_a_home_and_permissions(start: Start, model_folder: Path) -> None:
    lack = LACKS["compiler"] | Lack({"HOME": None, "TGI_ASYNC_CACHE": None}) | LACKS["permissions"]
    lack |= LACKS["docstrings"] | LACKS["working directory"] | LACKS["standard streams"]
    log = start(lack, "bfloat16", "--model-id", str(model_folder))
    assert "linear layers run slower" in log or "linear layers run slowest" in log


@pytest.mark.full
def test_without_files_that_can_be_written(start: Start) -> None:
    """What is in the cache already is used."""
    assert "Converting" not in start(LACKS["files"], "float32")


@pytest.mark.full
def test_without_a_cache(start: Start, model_folder: Path) -> None:
    lack = LACKS["cache"] | LACKS["docstrings"] | LACKS["working directory"]
    lack |= LACKS["standard streams"]
    start(lack, "bfloat16", "--model-id", str(model_folder))


def test_without_much_memory_and_processor_time_among_files_that_shadow_modules(
    start: Start, place: Path, model_folder: Path
) -> None:
    write_shadows(place)
    model = os.path.relpath(model_folder, place)
    with limited_groups("1400M", 1.0) as groups:
        enter = "".join(f"echo $$ > {group}/cgroup.procs\n" for group in groups)
        log = start(Lack(script=enter), "float32", "--model-id", model, cwd=place)
    (found,) = re.findall(r"KV cache up to ([\d.]+) GB", log)
    assert 0.01 < float(found) < 0.3
    if len(os.sched_getaffinity(0)) > 1:
        assert "threads: 1, not " in log


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", LACKS)
def test_one_lack_alone(start: Start, model_folder: Path, name: str, dtype: str) -> None:
    start(LACKS[name], dtype, "--model-id", str(model_folder))


@pytest.mark.full
@pytest.mark.parametrize("name", ["cache", "home"])
def test_the_model_that_comes_along_is_converted_for_the_run(start: Start, name: str) -> None:
    log = start(LACKS[name], "float32")
    assert "The prepared model is in a temporary folder" in log


@pytest.mark.full
def test_a_models_own_code_runs_without_a_home(
    start: Start, place: Path, model_folder: Path
) -> None:
    folder = place / "model"
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, folder)
    described = json.loads((folder / "config.json").read_text()) | {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "own.Strange", "AutoModelForCausalLM": "own.StrangeModel"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Strange(LlamaConfig):\n    model_type = 'strange'\n"
        "class StrangeModel(LlamaForCausalLM):\n    config_class = Strange\n"
    )
    lack = LACKS["compiler"] | Lack({"HOME": "/proc/version"})
    log = start(lack, "bfloat16", "--model-id", str(folder), "--trust-remote-code")
    assert "strange is not among the families" in log


@pytest.mark.full
@pytest.mark.parametrize("memory", ["150M", "450M", "800M"])
def test_too_little_memory_is_one_message_with_the_numbers(place: Path, memory: str) -> None:
    """Too little to convert the model, to load it, to serve it."""
    with limited_groups(memory, 2.0) as groups:
        enter = "".join(f"echo $$ > {group}/cgroup.procs\n" for group in groups)
        done = subprocess.run(
            [*Lack(script=enter).within(place), *COMMAND, "--hostname", "127.0.0.1", "--port", "0"],
            env=environment() | {"TGI_ASYNC_CACHE": str(place / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("Error: ")
    assert re.search(r"the control group /\S+ is limited to 0\.\d\d GB", last), done.stderr


@pytest.mark.full
def test_where_nothing_at_all_can_be_written_the_message_says_so(place: Path) -> None:
    lack = Lack({}, READ_ONLY + "mount -o remount,bind,ro /dev/shm\n", cut_off=True, stranger=True)
    done = subprocess.run(
        [*lack.within(place), *COMMAND, "--hostname", "127.0.0.1", "--port", "0"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Error: No folder for the workers' sockets can be made in " in done.stderr

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file
from safetensors.torch import save as save_file

from tests.doubles.hub_server import COMMIT, Hub, serve_hub
from tests.helpers.model_files import INDEX, index, model_files, pickled, safetensors, write_files
from tests.helpers.tiny_drafts import mlp_config, mlp_tensors, save_draft_model
from tests.helpers.tiny_gguf import write_tiny_gguf
from workers.models.blobs import ATTEMPTS

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from workers.models import blobs, prepare; "
    "blobs.FIRST_WAIT = 0.001; sys.exit(prepare.main())",
]
"""`python -m workers.models.prepare`, but for the waits after a broken connection."""

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]
Environment = Callable[..., dict[str, str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(model_files()) as hub:
        yield hub


@pytest.fixture
def environment(tmp_path: Path, hub: Hub) -> Environment:
    """The environment of a command that uses `hub`, and a cache of its own."""

    def make(**more: str) -> dict[str, str]:
        others = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING"))
        }
        return others | {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": hub.url,
            "TGI_ASYNC_CACHE": str(tmp_path / "cache"),
            **more,
        }

    return make


@pytest.fixture
def prepare(environment: Environment) -> Prepare:
    """Run the command in a process of its own: huggingface_hub reads its settings at import."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def failure(result: subprocess.CompletedProcess[str]) -> str:
    """The one message of a run that failed as it should."""
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def prepared(result: subprocess.CompletedProcess[str]) -> Path:
    """The folder of a run that succeeded."""
    assert result.returncode == 0, result.stderr
    return Path(json.loads(result.stdout)["path"])


def test_a_model_is_downloaded_and_its_commit_reported(prepare: Prepare, hub: Hub) -> None:
    result = prepare("org/model")

    folder = prepared(result)
    assert json.loads(result.stdout)["model_id"] == "org/model"
    assert json.loads(result.stdout)["revision"] == COMMIT
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == hub.files


def test_a_second_start_downloads_nothing(prepare: Prepare, hub: Hub) -> None:
    first = prepared(prepare("org/model"))
    hub.downloaded.clear()

    assert prepared(prepare("org/model")) == first
    assert hub.downloaded == []


def test_files_that_serving_does_not_need_stay_where_they_are(prepare: Prepare, hub: Hub) -> None:
    needed = {"chat_template.jinja", "tokenizer.model", *hub.files}
    for name in (
        "chat_template.jinja",
        "tokenizer.model",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/model.safetensors",
        "model.py",
        "README.md",
    ):
        hub.files[name] = name.encode()

    prepared(prepare("org/model"))

    assert set(hub.downloaded) == needed


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
def test_with_a_draft_model_comes_the_model_that_it_drafts_for(
    prepare: Prepare, hub: Hub, tmp_path: Path, name: str
) -> None:
    base = write_files(tmp_path / "base", model_files())
    tensors = {"0.0.linear.weight": torch.ones(2, 2)}
    weights = pickled(tensors) if name.endswith(".pt") else save_file(tensors)
    config = {"medusa_num_heads": 2, "base_model_name_or_path": str(base)}
    hub.files = {"config.json": json.dumps(config).encode(), name: weights}

    result = prepare("org/model", "--revision", "main")

    assert prepared(result) == base
    found = json.loads(result.stdout)
    assert (found["model_id"], found["revision"]) == ("org/model", COMMIT)
    loaded = load_file(Path(found["speculator"]) / "medusa_lm_head.safetensors")
    assert torch.equal(loaded["0.0.linear.weight"], torch.ones(2, 2))


def test_a_model_on_the_hub_may_be_what_is_drafted_for(
    prepare: Prepare, hub: Hub, tmp_path: Path
) -> None:
    draft = save_draft_model(tmp_path / "d", mlp_config(base="org/model"), mlp_tensors())

    result = prepare(str(draft))

    assert prepared(result).name == COMMIT
    found = json.loads(result.stdout)
    assert (found["model_id"], found["revision"]) == (str(draft), None)
    assert found["speculator"] == str(draft)
    assert f"{draft} is an MLP speculator for org/model" in result.stderr

    message = failure(prepare(str(draft), HF_ENDPOINT="http://127.0.0.1:1", HF_HOME=str(tmp_path)))
    assert message.startswith(f"Error: model {draft} is an MLP speculator for org/model ")
    assert "which cannot be served: " in message


def test_what_a_model_of_the_hub_drafts_for_is_not_looked_for_beside_its_files(
    prepare: Prepare, hub: Hub
) -> None:
    config = {"medusa_num_heads": 2, "base_model_name_or_path": COMMIT}
    hub.files = {
        "config.json": json.dumps(config).encode(),
        "medusa_lm_head.safetensors": safetensors("a"),
    }
    assert f"a Medusa checkpoint for {COMMIT} " in failure(prepare("org/model"))


def test_code_is_taken_where_it_is_trusted(prepare: Prepare, hub: Hub) -> None:
    hub.files["model.py"] = b"pass"

    assert (prepared(prepare("org/model", "--trust-remote-code")) / "model.py").exists()


def test_the_cache_can_be_elsewhere(prepare: Prepare, tmp_path: Path) -> None:
    folder = prepared(prepare("org/model", "--cache", str(tmp_path / "elsewhere")))

    assert folder.is_relative_to(tmp_path / "elsewhere")


def test_a_cache_that_cannot_be_written_is_named(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    where = str(tmp_path / "file" / "hub")
    message = failure(prepare("org/model", "--cache", where))
    assert message.startswith("Error: model org/model cannot be kept: ")
    assert where in message
    assert "Set HF_HOME, or --huggingface-hub-cache, to a folder" in message


def test_a_home_that_cannot_be_read_has_no_token(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    elsewhere = ("--cache", str(tmp_path / "elsewhere"))
    at_home = {"HF_HOME": str(tmp_path / "file" / "home")}
    scratch = ("--scratch", str(tmp_path / "scratch"))
    assert "token" in failure(prepare("org/model", *elsewhere, **at_home))
    prepared(prepare("org/model", *elsewhere, *scratch, **at_home))


def test_a_user_without_a_home_has_to_name_a_cache(prepare: Prepare) -> None:
    # What a home folder is replaced by where there is none.
    message = failure(prepare("org/model", HF_HOME="~nobody-of-this-name/hf"))
    assert "this user has no home folder. Set HF_HOME" in message
    assert "does not exist" in failure(prepare("~nobody-of-this-name/model"))


def test_a_commit_can_be_named(prepare: Prepare) -> None:
    assert prepared(prepare("org/model", "--revision", COMMIT)).name == COMMIT


def test_a_missing_revision_is_named(prepare: Prepare) -> None:
    message = failure(prepare("org/model", "--revision", "v9"))

    assert "model org/model has no revision 'v9'" in message


def test_a_gated_model_says_what_to_do(prepare: Prepare, hub: Hub) -> None:
    hub.gated, hub.token = True, "secret"

    message = failure(prepare("org/model", HF_TOKEN="of another account"))

    assert f"accept its licence at {hub.url}/org/model and set HF_TOKEN" in message


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_opens_a_private_model(prepare: Prepare, hub: Hub, name: str) -> None:
    hub.token = "secret"

    assert "or is private" in failure(prepare("org/model"))
    prepared(prepare("org/model", **{name: "secret"}))


def test_a_model_that_does_not_exist_is_named(prepare: Prepare) -> None:
    message = failure(prepare("org/other"))

    assert "model org/other does not exist" in message


def test_a_name_that_cannot_be_a_model_is_refused(prepare: Prepare) -> None:
    message = failure(prepare("what is this?"))

    assert "neither an existing folder nor a Hub id" in message


def test_offline_and_not_in_the_cache_is_said(prepare: Prepare) -> None:
    message = failure(prepare("org/model", HF_HUB_OFFLINE="1"))

    assert "is not in the cache" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_offline_serves_what_is_in_the_cache(prepare: Prepare, hub: Hub) -> None:
    folder = prepared(prepare("org/model"))
    hub.down = True

    assert prepared(prepare("org/model", HF_HUB_OFFLINE="1")) == folder


def test_an_unreachable_hub_is_said(prepare: Prepare) -> None:
    message = failure(prepare("org/model", HF_ENDPOINT="http://127.0.0.1:1"))

    assert "http://127.0.0.1:1 cannot be reached" in message


def test_an_unreachable_hub_does_not_stop_a_model_in_the_cache(prepare: Prepare) -> None:
    folder = prepared(prepare("org/model"))

    assert prepared(prepare("org/model", HF_ENDPOINT="http://127.0.0.1:1")) == folder


def test_half_a_model_in_the_cache_is_not_served(prepare: Prepare, hub: Hub) -> None:
    weights = prepared(prepare("org/model")) / "model.safetensors"
    weights.unlink()

    message = failure(prepare("org/model", HF_HUB_OFFLINE="1"))
    assert "only a part of model org/model" in message
    assert prepared(prepare("org/model")) == weights.parent
    assert weights.read_bytes() == hub.files["model.safetensors"]


def test_a_hub_in_trouble_is_said_with_its_status(prepare: Prepare, hub: Hub) -> None:
    hub.down = True

    assert "answered 503" in failure(prepare("org/model"))


def with_large_weights(hub: Hub) -> bytes:
    """Make the weights of the model 400 kB."""
    hub.files["model.safetensors"] = save({"a": np.arange(100_000, dtype=np.float32)})
    return hub.files["model.safetensors"]


def test_a_connection_that_breaks_goes_on_where_it_broke(prepare: Prepare, hub: Hub) -> None:
    weights = with_large_weights(hub)
    hub.cuts["model.safetensors"] = [100_000, 0, 150_000]

    folder = prepared(prepare("org/model"))

    assert (folder / "model.safetensors").read_bytes() == weights
    assert hub.downloaded.count("model.safetensors") == 4
    assert hub.sent["model.safetensors"] == len(weights)


def test_a_new_start_goes_on_where_the_last_one_gave_up(prepare: Prepare, hub: Hub) -> None:
    weights = with_large_weights(hub)
    hub.cuts["model.safetensors"] = [123_456, *[0] * 100]
    assert "start again to resume" in failure(prepare("org/model"))
    already = set(hub.downloaded)
    assert already == hub.files.keys()

    hub.downloaded.clear()
    hub.cuts.clear()
    result = prepare("org/model")

    assert (prepared(result) / "model.safetensors").read_bytes() == weights
    assert "Resuming model.safetensors: 123.5 kB of 400" in result.stderr
    assert hub.downloaded == ["model.safetensors"]
    assert hub.sent["model.safetensors"] == len(weights)


def test_a_connection_that_stays_broken_is_given_up(prepare: Prepare, hub: Hub) -> None:
    hub.cuts["model.safetensors"] = [0] * 100

    failure(prepare("org/model"))

    assert hub.downloaded.count("model.safetensors") == ATTEMPTS


def test_a_killed_download_goes_on_from_the_bytes_that_are_there(
    prepare: Prepare, environment: Environment, hub: Hub
) -> None:
    weights = with_large_weights(hub)
    hub.held = "model.safetensors"
    process = subprocess.Popen([*COMMAND, "org/model"], env=environment())
    assert hub.half_sent.wait(60)
    blobs = Path(environment()["HF_HOME"], "hub", "models--org--model", "blobs")
    while not any(path.stat().st_size == len(weights) // 2 for path in blobs.glob("*.incomplete")):
        assert process.poll() is None
    process.kill()
    process.wait()
    hub.held = None
    hub.let_go.set()

    folder = prepared(prepare("org/model"))

    assert (folder / "model.safetensors").read_bytes() == weights
    assert hub.sent["model.safetensors"] == len(weights)
    assert not list(blobs.glob("*.incomplete"))


def test_two_starts_at_a_time_fetch_a_file_once(
    prepare: Prepare, environment: Environment, hub: Hub
) -> None:
    weights = with_large_weights(hub)
    hub.held = "model.safetensors"
    first = subprocess.Popen([*COMMAND, "org/model"], env=environment(), stdout=subprocess.DEVNULL)
    try:
        assert hub.half_sent.wait(60)
        hub.held = None
        second = subprocess.Popen(
            [*COMMAND, "org/model"], env=environment(), stdout=subprocess.PIPE, text=True
        )
        # Asked for by the second one just before it comes to the lock that the first one holds.
        while hub.asked.count("HEAD model.safetensors") < 2:
            assert second.poll() is None
    finally:
        hub.let_go.set()
    output, _ = second.communicate(timeout=60)

    assert (first.wait(60), second.returncode) == (0, 0)
    assert (Path(json.loads(output)["path"]) / "model.safetensors").read_bytes() == weights
    assert hub.sent["model.safetensors"] == len(weights)


def test_a_server_that_knows_no_ranges_sends_it_all_again(prepare: Prepare, hub: Hub) -> None:
    weights = with_large_weights(hub)
    hub.knows_ranges = False
    hub.cuts["model.safetensors"] = [100_000]

    folder = prepared(prepare("org/model"))

    assert (folder / "model.safetensors").read_bytes() == weights
    assert hub.sent["model.safetensors"] == 100_000 + len(weights)


def sharded(hub: Hub) -> None:
    """Put the weights of the model into two files and an index."""
    del hub.files["model.safetensors"]
    hub.files |= {
        INDEX: index(a="1.safetensors", b="2.safetensors"),
        "1.safetensors": safetensors("a"),
        "2.safetensors": safetensors("b"),
    }


def test_shards_come_each_with_its_own_breaks(prepare: Prepare, hub: Hub) -> None:
    sharded(hub)
    hub.cuts = {"1.safetensors": [10], "2.safetensors": [20, 30]}

    folder = prepared(prepare("org/model"))

    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == hub.files
    assert hub.sent == {name: len(content) for name, content in hub.files.items()}


def test_a_damaged_shard_is_refused_and_not_kept(prepare: Prepare, hub: Hub) -> None:
    sharded(hub)
    hub.damaged.add("2.safetensors")

    message = failure(prepare("org/model"))
    assert "2.safetensors came with the sha256" in message
    assert "is not kept" in message

    hub.damaged.clear()
    folder = prepared(prepare("org/model"))
    assert (folder / "2.safetensors").read_bytes() == hub.files["2.safetensors"]


def test_the_cache_is_as_huggingface_hub_would_leave_it(
    prepare: Prepare, environment: Environment, tmp_path: Path
) -> None:
    def layout(home: Path) -> dict[str, str | bytes]:
        root = home / "hub" / "models--org--model"
        return {
            str(path.relative_to(root)): str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            for path in root.rglob("*")
            if path.is_symlink() or path.is_file()
        }

    prepared(prepare("org/model"))
    theirs = environment(HF_HOME=str(tmp_path / "theirs"))
    script = "import huggingface_hub as h; h.snapshot_download('org/model')"
    subprocess.run([sys.executable, "-c", script], env=theirs, check=True, timeout=60)

    assert layout(Path(environment()["HF_HOME"])) == layout(tmp_path / "theirs")


def test_a_gated_model_opens_with_a_token(prepare: Prepare, hub: Hub) -> None:
    hub.gated, hub.token = True, "secret"

    assert f"accept its licence at {hub.url}/org/model" in failure(prepare("org/model"))
    folder = prepared(prepare("org/model", HF_TOKEN="secret"))
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_pickled_weights_are_converted_where_there_are_no_others(
    prepare: Prepare, hub: Hub
) -> None:
    del hub.files["model.safetensors"]
    hub.files["adapter_model.safetensors"] = safetensors("lora")
    hub.files["pytorch_model.bin"] = pickled({"a": torch.ones(2)})

    folder = prepared(prepare("org/model"))

    assert (folder / "model.safetensors").is_file()
    assert prepared(prepare("org/model", "--auto-convert")) == folder


def test_a_model_without_weights_is_refused(prepare: Prepare, hub: Hub) -> None:
    del hub.files["model.safetensors"]

    assert "it has no weights" in failure(prepare("org/model"))


def as_gguf(hub: Hub, tmp_path: Path) -> None:
    """Make the model of the hub two GGUF files and a projector of images."""
    content = write_tiny_gguf(tmp_path / "tiny.gguf").path.read_bytes()
    hub.files = {
        "README.md": b"",
        "tiny-Q4_0.gguf": content,
        "tiny-Q8_0.gguf": content,
        "mmproj-F16.gguf": b"",
    }


@pytest.mark.parametrize(
    ("model_id", "file"),
    [
        ("org/model", "tiny-Q8_0.gguf"),
        ("org/model:Q4_0", "tiny-Q4_0.gguf"),
        ("org/model:tiny-Q4_0.gguf", "tiny-Q4_0.gguf"),
    ],
)
def test_a_gguf_file_is_downloaded_and_converted(
    prepare: Prepare, hub: Hub, tmp_path: Path, model_id: str, file: str
) -> None:
    as_gguf(hub, tmp_path)
    hub.cuts[file] = [1000]

    result = prepare(model_id)

    assert (prepared(result) / "model.safetensors").is_file()
    assert json.loads(result.stdout)["model_id"] == model_id
    assert json.loads(result.stdout)["revision"] == COMMIT
    assert hub.sent == {file: len(hub.files[file])}
    hub.down = True
    assert prepared(prepare(model_id, HF_HUB_OFFLINE="1")) == prepared(result)


def test_a_gguf_file_that_is_not_there_is_named(prepare: Prepare, hub: Hub, tmp_path: Path) -> None:
    as_gguf(hub, tmp_path)

    message = failure(prepare("org/model:other.gguf"))

    assert "org/model has no file other.gguf; it has tiny-Q4_0.gguf, tiny-Q8_0.gguf" in message


def test_a_gguf_file_can_be_named_beside_safetensors(
    prepare: Prepare, hub: Hub, tmp_path: Path
) -> None:
    hub.files["x.gguf"] = write_tiny_gguf(tmp_path / "tiny.gguf").path.read_bytes()

    assert prepared(prepare("org/model")).name == COMMIT
    assert prepared(prepare("org/model:x.gguf")).is_relative_to(tmp_path / "cache")

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tgi_async import cgroups
from tgi_async.cli import launcher_main, main, server_main
from tgi_async.errors import StartError
from tgi_async.settings import Settings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, handlers = root.level, root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(before)
    logging.getLogger("uvicorn").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    """What a server does not handle yet is held up; not so the tests after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `serve` was called with; it is not run."""
    found: list[Settings] = []

    def serve(settings: Settings) -> int:
        found.append(settings)
        return 0

    for name in ("PORT", "MODEL_ID", "HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tgi_async.launcher.serve", serve)
    return found


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `tgi-async`."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("tgi-async")), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_both_names_serve_with_the_same_flags(served: list[Settings]) -> None:
    assert main(["serve", "--port", "81", "--model-id", "a/b"]) == 0
    assert launcher_main(["--port", "81", "--model-id", "a/b"]) == 0
    assert served == [Settings(port=81, model_id="a/b")] * 2


def test_a_signal_that_comes_while_it_is_imported_waits(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopt() -> None:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr("tgi_async.cli.adopt_token", adopt)
    assert main(["serve"]) == 0
    assert signal.sigpending() == {signal.SIGUSR1, signal.SIGHUP}
    for number in signal.sigpending():
        signal.sigwait([number])


def test_variables_count(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_ID", "a/b")
    assert launcher_main([]) == 0
    assert served[0].model_id == "a/b"


@pytest.mark.parametrize("run", [main, launcher_main])
def test_an_unknown_flag_is_named(
    run: object, served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve"] * (run is main) + ["--no-such-flag", "7"]
    with pytest.raises(SystemExit) as stopped:
        run(arguments)  # type: ignore[operator]
    assert stopped.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err
    assert served == []


def test_an_error_at_start_is_one_line_and_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(settings: Settings) -> int:
        raise StartError("it is not to be")

    monkeypatch.setattr("tgi_async.launcher.serve", serve)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "Error: it is not to be\n"


def test_what_has_no_effect_is_one_line_and_the_start_goes_on(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher_main(["--ngrok", "--waiting-served-ratio", "1.2", "--usage-stats", "off"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert "WARNING --waiting-served-ratio has no effect: " in first
    assert "WARNING --ngrok has no effect: this server opens no tunnel" in second
    assert len(served) == 1


def test_the_log_is_as_asked_for(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher_main(["--json-output", "--ngrok"]) == 0
    assert json.loads(capsys.readouterr().err)["level"] == "WARNING"
    assert launcher_main(["--log-level", "error", "--ngrok"]) == 0
    assert capsys.readouterr().err == ""


def test_flags_are_not_guessed_from_their_beginning(served: list[Settings]) -> None:
    with pytest.raises(SystemExit):
        launcher_main(["--max-best", "3"])
    with pytest.raises(SystemExit):
        main(["serve", "--max-best", "3"])
    assert served == []


def test_the_token_of_the_hub_has_another_name_in_tgi(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "call", lambda command, env: 0)
    starts: list[Callable[[], int]] = [
        lambda: launcher_main([]),
        lambda: main(["download-weights"]),
    ]
    for start in starts:
        with monkeypatch.context() as patch:
            patch.setenv("HF_TOKEN", "to be put back")
            patch.delenv("HF_TOKEN")
            patch.setenv("HF_API_TOKEN", "old")
            start()
            assert os.environ["HF_TOKEN"] == "old"
            patch.setenv("HF_TOKEN", "new")
            start()
            assert os.environ["HF_TOKEN"] == "new"


def test_what_is_not_built_is_refused_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--lora-adapters", "a/b"]) == 1
    assert "--lora-adapters asks for LoRA adapters, which is not" in capsys.readouterr().err


def test_the_environment_is_reported_for_a_bug_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    reported = capsys.readouterr().out
    assert launcher_main(["--env"]) == 0
    assert capsys.readouterr().out == reported
    for name in ("tgi-async: ", "python: ", "torch: ", "tokenizers: "):
        assert name in reported


def test_the_environment_has_the_limits_of_its_control_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: 1.5)
    limit = cgroups.MemoryLimit(Path("/a"), 2_000_000_000, 0, 0)
    monkeypatch.setattr(cgroups, "memory_limits", lambda: [limit])
    assert main(["env"]) == 0
    reported = capsys.readouterr().out
    assert ", limited to 1.5\n" in reported
    assert "memory: the control group /a is limited to 2.00 GB\n" in reported


def test_the_environment_is_reported_before_a_start_that_was_asked_for_too(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher_main(["--env", "--model-id", "a/b"]) == 0
    assert "tgi-async: " in capsys.readouterr().out
    assert served == [Settings(model_id="a/b")]
    assert launcher_main(["-e"]) == 0
    assert len(served) == 1


@pytest.mark.parametrize(
    ("name", "module"),
    [("download-weights", "workers.models.prepare"), ("quantize", "workers.models.quantize")],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["a/b", "--revision", "main"],
        ["--revision", "main", "a/b"],
        ["--auto-convert", "a/b"],
        ["--help"],
        [],
    ],
)
def test_programs_of_workers_get_their_arguments_as_they_are(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, arguments: list[str]
) -> None:
    called: list[list[str]] = []

    def call(command: list[str], env: dict[str, str]) -> int:
        called.append(command)
        return 5

    monkeypatch.setattr(subprocess, "call", call)
    assert main([name, *arguments]) == 5
    assert server_main([name, *arguments]) == 5
    assert called == [[sys.executable, "-P", "-m", module, *arguments]] * 2


def test_the_embedded_model_is_downloaded_by_a_program_of_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    def call(command: list[str], env: dict[str, str]) -> int:
        called.append(command)
        return 5

    monkeypatch.setattr(subprocess, "call", call)
    assert main(["download-embedded", "--help"]) == 5
    assert called[0][-2:] == ["workers.models.download_embedded", "--help"]
    assert server_main(["download-embedded"]) == 2, "TGI has no such command"
    assert "download-embedded is not here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["serve", "a/b"], []])
def test_what_tgis_server_did_beside_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert server_main(arguments) == 2
    said = capsys.readouterr().err
    assert f"text-generation-server {(arguments or ['without'])[0]} " in said
    assert "download-weights and quantize; to serve, run text-generation-launcher" in said


@pytest.mark.parametrize(
    ("umask", "left"), [(0o777, 0o077), (0o277, 0o077), (0o022, 0o022), (0o077, 0o077)]
)
def test_what_is_made_can_be_used_whatever_the_umask(
    served: list[Settings], umask: int, left: int
) -> None:
    before = os.umask(umask)
    try:
        assert main(["serve"]) == launcher_main([]) == 0
        assert os.umask(before) == left
    finally:
        os.umask(before)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_open_to_nowhere(tmp_path: Path, closed: str) -> None:
    """For children too; what is opened later is not taken for one of them."""
    program = (
        "import os, pathlib, subprocess, sys\n"
        "from tgi_async import cli\n"
        "cli._settle()\n"
        "child = subprocess.run([sys.executable, '-c', 'import os; print(os.fstat(0).st_mode)'])\n"
        "print('out', file=sys.stdout, flush=True)\n"
        "print('error', file=sys.stderr, flush=True)\n"
        "lowest = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "os.write(lowest, f'{lowest > 2} {child.returncode} {sys.stdin.read()!r}'.encode())\n"
    )
    report = tmp_path / "report"
    command = f'exec "$@" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-c", program, str(report)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert report.read_text() == "True 0 ''", done.stderr


def test_a_working_directory_that_is_gone_is_left(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back again in the end
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    assert main(["serve"]) == 0
    assert os.getcwd() == "/"


def test_an_interrupted_download_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(command: list[str], env: dict[str, str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "call", interrupt)
    assert main(["download-weights"]) == 130


def test_an_unknown_model_folder_is_one_message(tmp_path: Path) -> None:
    found = command("serve", "--port", "0", "--model-id", str(tmp_path / "no" / "model"))
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert f"the model folder {tmp_path}/no/model does not exist" in found.stderr
    assert "the reason is above" in found.stderr


def test_a_folder_without_a_model_is_one_message(tmp_path: Path) -> None:
    found = command("serve", "--port", "0", MODEL_ID=str(tmp_path))
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert "has no config.json" in found.stderr


@pytest.mark.parametrize("command", [main, launcher_main])
@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_reported(
    command: Callable[[list[str]], int], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        command([flag])
    assert capsys.readouterr().out[0].isdigit()


def test_without_a_command_the_commands_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


def test_migrate_says_what_a_command_of_tgis_becomes() -> None:
    given = ("docker", "run", "--gpus", "all", "tgi:3", "--model-id", "a/b", "--ngrok")
    done = command("migrate", *given)
    assert done.returncode == 0, done.stderr
    assert "becomes: docker run --gpus all tgi-async:cuda --model-id a/b\n" in done.stdout

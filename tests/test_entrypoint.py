from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgi_async import entrypoint

PROGRAM = [sys.executable, "-P", "-c", "from tgi_async.entrypoint import main; exit(main())"]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, env=os.environ | variables
    )


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Flags that the launcher got; the environment is that of the test alone."""
    got: list[list[str]] = []

    def launcher(flags: list[str]) -> int:
        got.append(flags)
        return 0

    monkeypatch.setattr("tgi_async.cli.launcher_main", launcher)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return got


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ([], []),
        (["--model-id", "a b"], ["--model-id", "a b"]),
        (["serve"], []),
        (["serve", "--port", "81"], ["--port", "81"]),
    ],
)
def test_flags_go_to_the_launcher(
    served: list[list[str]], arguments: list[str], flags: list[str]
) -> None:
    assert entrypoint.main(arguments) == 0
    assert served == [flags]


def test_flags_in_variables_come_before_the_arguments_that_may_replace_them(
    served: list[list[str]],
) -> None:
    os.environ["SM_TGI_MAX_TOTAL_TOKENS"] = "4096"
    assert entrypoint.main(["serve"]) == 0
    assert entrypoint.main(["serve", "--max-total-tokens", "300"]) == 0
    assert served == [
        ["--max-total-tokens=4096"],
        ["--max-total-tokens=4096", "--max-total-tokens", "300"],
    ]


def test_what_a_platform_says_is_set(served: list[list[str]]) -> None:
    os.environ["PORT"] = "80"
    entrypoint.main(["serve"])
    assert os.environ["PORT"] == "8080"


def test_another_command_runs_in_its_place() -> None:
    done = run("/bin/sh", "-c", 'echo "$0 $1 $$"; exit 7', "a b", "c")
    assert (done.returncode, done.stdout.split()[:3]) == (7, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("Qwen/Qwen3-0.6B", 127, "--model-id Qwen/Qwen3-0.6B"),
        (str(Path(__file__)), 126, "cannot be run: Permission denied"),
    ],
)
def test_what_is_no_command_is_reported(command: str, status: int, said: str) -> None:
    done = run(command)
    assert done.returncode == status
    assert said in done.stderr


def test_a_platforms_model_that_cannot_be_had_ends_the_start() -> None:
    done = run(AIP_STORAGE_URI="gs://bucket/model", MODEL_ID="", HF_MODEL_ID="")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Vertex AI names the model's files by AIP_STORAGE_URI")

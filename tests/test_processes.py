"""The server's Python processes, started where a stranger's files lie."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import tgi_async
from tests.helpers.shadows import MESSAGE, write_shadows
from tgi_async import processes
from tgi_async.grammar import checker
from tgi_async.preparation import PREPARE
from tgi_async.supervisor import WORKER
from tgi_async.text import chat

ROOT = Path(tgi_async.__file__).parent.parent


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with files and folders of the names that the server imports."""
    write_shadows(tmp_path)
    return tmp_path


def started(command: tuple[str, ...], cwd: Path, **variables: str) -> str:
    """What a process says that ends at once: it gets no input and flags that it does not know."""
    done = subprocess.run(
        [*command, "--no-such-flag"],
        cwd=cwd,
        env=processes.environment(os.environ | variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stderr


@pytest.mark.parametrize("command", [WORKER, PREPARE, checker.COMMAND, chat.COMMAND])
@pytest.mark.parametrize("path", ["", os.pathsep])
def test_files_of_the_working_directory_do_not_run(
    command: tuple[str, ...], path: str, hostile: Path
) -> None:
    inherited = os.environ.get("PYTHONPATH", "")
    said = started(command, hostile, PYTHONPATH=path + inherited)
    assert MESSAGE not in said
    assert any(word in said for word in ("usage: ", "DecodeError")), said


def test_they_would_run_otherwise(hostile: Path) -> None:
    assert MESSAGE in started((sys.executable, "-m", "workers"), hostile)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"PYTHONPATH": "/a:/b", "A": "b"}, {"PYTHONPATH": "/a:/b", "A": "b"}),
        ({"PYTHONPATH": ":/a::/b:"}, {"PYTHONPATH": "/a:/b"}),
        ({"PYTHONPATH": ":"}, {}),
        ({"PYTHONPATH": ""}, {}),
        ({}, {}),
        ({"PYTHONOPTIMIZE": "2"}, {"PYTHONOPTIMIZE": "1"}),
        ({"PYTHONOPTIMIZE": "yes"}, {"PYTHONOPTIMIZE": "1"}),
        ({"PYTHONOPTIMIZE": "0"}, {"PYTHONOPTIMIZE": "0"}),
        ({"PYTHONOPTIMIZE": ""}, {"PYTHONOPTIMIZE": ""}),
    ],
)
def test_what_the_user_set_stays_unless_it_cannot_work(
    given: Mapping[str, str], left: Mapping[str, str]
) -> None:
    for threads in ({}, {"OPENBLAS_NUM_THREADS": "2"}):
        found = processes.environment({**given, **threads})
        assert found == {**left, "OPENBLAS_NUM_THREADS": threads.get("OPENBLAS_NUM_THREADS", "1")}


def test_all_python_processes_are_started_this_way() -> None:
    starts = [
        str(path.relative_to(ROOT))
        for package in ("tgi_async", "workers")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "executable"
    ]
    # An upgrade starts the server as this one was started.
    assert starts == ["tgi_async/processes.py", "tgi_async/upgrade/upgrade.py"]

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LIVE = "import os, sys; from workers.parent_death import die_with_parent as d; d(int(sys.argv[1]))"

BY_KERNEL = "threading.Thread = None"
NO_PRCTL = "ctypes.CDLL = lambda name: object()"
REFUSED_PRCTL = "ctypes.CDLL = lambda name: SimpleNamespace(prctl=lambda *given: -1)"
WORKER = """
import ctypes, os, threading, time
from types import SimpleNamespace
{without}
from workers.parent_death import die_with_parent
die_with_parent(os.getppid())
print("alive", flush=True)
time.sleep(60)
"""
ROUTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def run(router: int) -> int:
    """The exit status of a process that is given `router` as its parent."""
    return subprocess.run([sys.executable, "-c", LIVE, str(router)], timeout=20).returncode


def test_a_worker_lives_while_its_router_does() -> None:
    assert run(os.getpid()) == 0


def test_a_worker_whose_router_is_gone_already_ends_at_once() -> None:
    assert run(os.getppid()) == 1


@pytest.mark.parametrize("without", [BY_KERNEL, NO_PRCTL, REFUSED_PRCTL])
def test_a_worker_dies_when_its_router_is_killed(without: str) -> None:
    command = [sys.executable, "-c", ROUTER, WORKER.format(without=without)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as router:
        assert router.stdout is not None
        assert router.stdout.readline() == "alive\n"
        router.kill()
        # The worker has the other end of this pipe, too: it closes when both are gone.
        rest, _ = router.communicate(timeout=30)
    assert rest == ""

from __future__ import annotations

import os
import subprocess
import sys

LIVE = "import os, sys; from workers.parent_death import die_with_parent as d; d(int(sys.argv[1]))"


def run(router: int) -> int:
    """The exit status of a process that is given `router` as its parent."""
    return subprocess.run([sys.executable, "-c", LIVE, str(router)], timeout=20).returncode


def test_a_worker_lives_while_its_router_does() -> None:
    assert run(os.getpid()) == 0


def test_a_worker_whose_router_is_gone_already_ends_at_once() -> None:
    assert run(os.getppid()) == 1

"""Whether processes do anything, by what the kernel says of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.doubles.fake_engine_run import DEADLINE
from tgi_async.processes import UNKNOWN, activity

USES_SOME = "import time; end = time.process_time() + 0.05\nwhile time.process_time() < end: pass\n"
SLEEPS = USES_SOME + "time.sleep(3600)"
SPINS = "while True: pass"
THREAD = f"""
import threading
def spin():
    {SPINS}
threading.Thread(target=spin).start()
"""
"""The thread that the process is known by sleeps."""
PARENT = USES_SOME + "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"


@contextmanager
def started(code: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stands_still(*pids: int) -> bool:
    before = activity(pids)
    time.sleep(0.1)
    return before.seconds is not None and activity(pids).seconds == before.seconds


def test_a_process_that_sleeps_does_nothing() -> None:
    with started(SLEEPS) as process:
        wait_until(lambda: stands_still(process.pid))


def test_a_process_that_is_stopped_does_nothing() -> None:
    with started(SPINS) as process:
        wait_until(lambda: activity([process.pid]).seconds is None)
        time.sleep(0.1)
        assert not activity([process.pid]).stopped
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: stands_still(process.pid))
        assert activity([process.pid]).stopped
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: not activity([process.pid]).stopped)


def test_a_stopped_child_does_not_stop_its_parent() -> None:
    stops = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    with started(PARENT.format(stops)) as process:
        wait_until(lambda: activity(children(process.pid)).stopped)
        assert not activity([process.pid]).stopped


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def test_what_a_process_reads_is_counted() -> None:
    with started("import os\nwhile True: os.read(os.open('/dev/zero', 0), 1 << 16)") as process:
        before = activity([process.pid]).read
        wait_until(lambda: activity([process.pid]).read > before + (1 << 20))


@pytest.mark.parametrize("code", [SPINS, PARENT.format(SPINS), THREAD])
def test_a_process_that_computes_or_has_a_child_or_thread_that_does_is_seen(code: str) -> None:
    with started(SLEEPS) as idle, started(code) as busy:
        wait_until(lambda: stands_still(idle.pid))
        time.sleep(0.3)
        assert not any(stands_still(idle.pid, busy.pid) for _ in range(5))


def test_what_cannot_be_seen_is_not_taken_for_idle() -> None:
    with started(SLEEPS) as process:
        wait_until(lambda: stands_still(process.pid))
    assert activity([process.pid]) == UNKNOWN

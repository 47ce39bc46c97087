"""Whether processes do anything, by the processor time that they use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.doubles.fake_engine_run import DEADLINE
from tgi_async.processes import processor_seconds

USES_SOME = "import time; end = time.process_time() + 0.05\nwhile time.process_time() < end: pass\n"
SLEEPS = USES_SOME + "time.sleep(3600)"
SPINS = "while True: pass"
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
    before = processor_seconds(pids)
    time.sleep(0.1)
    return before is not None and (processor_seconds(pids) or 0.0) == before


def test_a_process_that_sleeps_does_nothing() -> None:
    with started(SLEEPS) as process:
        wait_until(lambda: stands_still(process.pid))


def test_a_process_that_is_stopped_does_nothing() -> None:
    with started(SPINS) as process:
        wait_until(lambda: processor_seconds([process.pid]) is None)
        time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: stands_still(process.pid))


@pytest.mark.parametrize("code", [SPINS, PARENT.format(SPINS)])
def test_a_process_that_computes_or_has_a_child_that_does_is_seen(code: str) -> None:
    with started(SLEEPS) as idle, started(code) as busy:
        wait_until(lambda: stands_still(idle.pid))
        time.sleep(0.3)
        assert not any(stands_still(idle.pid, busy.pid) for _ in range(5))


def test_what_cannot_be_seen_is_not_taken_for_idle() -> None:
    with started(SLEEPS) as process:
        wait_until(lambda: stands_still(process.pid))
    assert processor_seconds([process.pid]) is None

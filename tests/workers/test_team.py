"""The team shares out the units of a job: each is done once, whoever does it."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from workers import native

Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
Run = Callable[[Callable[[int, int], None], int, int], None]


@pytest.fixture(scope="module")
def run() -> Run:
    """run(work, units, threads), work(unit, next)."""
    try:
        function = native.kernels().team_run
    except native.NativeUnavailable as error:
        pytest.skip(str(error))
    function.argtypes = (Work, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function.restype = None

    def call(work: Callable[[int, int], None], units: int, threads: int) -> None:
        function(Work(lambda job, unit, next_unit: work(unit, next_unit)), None, units, threads)

    return call


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("units", [0, 1, 2, 3, 7, 64, 1000])
def test_each_unit_is_done_once(run: Run, units: int, threads: int) -> None:
    done: list[int] = []
    run(lambda unit, _: done.append(unit), units, threads)
    assert Counter(done) == Counter(range(units))


def test_jobs_that_follow_at_once_are_not_mixed(run: Run) -> None:
    for job in range(500):
        done: list[tuple[int, int]] = []
        run(lambda unit, _, job=job, done=done: done.append((job, unit)), 5, 3)  # type: ignore[misc]
        assert sorted(done) == [(job, unit) for unit in range(5)]


def test_the_next_unit_is_a_unit_that_is_not_done_yet(run: Run) -> None:
    for threads in (1, 3):
        seen: list[tuple[int, int]] = []
        run(lambda unit, ahead, seen=seen: seen.append((unit, ahead)), 20, threads)  # type: ignore[misc]
        assert all(
            ahead == -1 or (0 <= ahead < 20 and abs(ahead - unit) == 1) for unit, ahead in seen
        )
    assert any(ahead == -1 for _, ahead in seen)


def test_a_second_thread_works_with_the_first(run: Run) -> None:
    # Each unit waits for the other, so that one thread alone could not finish.
    both = threading.Barrier(2, timeout=60)
    names: set[int] = set()

    def work(unit: int, _: int) -> None:
        names.add(threading.get_ident())
        both.wait()

    run(work, 2, 2)
    assert len(names) == 2


def test_a_call_during_another_ones_job_does_its_own(run: Run) -> None:
    done: list[str] = []

    def outer(unit: int, _: int) -> None:
        run(lambda inner, _: done.append(f"{unit}.{inner}"), 3, 2)

    run(outer, 4, 2)
    assert Counter(done) == Counter(f"{unit}.{inner}" for unit in range(4) for inner in range(3))


def test_callers_from_several_threads_get_their_own_results(run: Run) -> None:
    results: dict[int, list[int]] = {i: [] for i in range(4)}

    def call(i: int) -> None:
        for _ in range(50):
            run(lambda unit, _: results[i].append(unit), 6, 2)

    callers = [threading.Thread(target=call, args=(i,)) for i in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(Counter(x) == Counter(dict.fromkeys(range(6), 50)) for x in results.values())

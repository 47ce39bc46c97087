from __future__ import annotations

import pytest

from tgi_async.deadline import (
    BUSY_SECONDS,
    FACTOR,
    IDLE_LOADING_SECONDS,
    IDLE_SECONDS,
    LOOK_SECONDS,
    STOPPED_SECONDS,
    Deadline,
)
from tgi_async.processes import UNKNOWN as UNSEEN
from tgi_async.processes import Activity

UNKNOWN = 10_000.0


class Watched:
    """A deadline, a clock, and a worker that uses the processor or does not."""

    def __init__(self, phases: tuple[float, ...] = (2.0,)) -> None:
        self.deadline = Deadline()
        self.now = 1000.0
        self.used: float | None = 7.0
        self.read = 0
        self.stopped = False
        self.load(phases)

    def load(self, phases: tuple[float, ...]) -> None:
        """End a start, after these phases."""
        if phases:
            self.deadline.started()
        for seconds in phases:
            self.deadline.loaded(seconds)
        self.deadline.ready()

    def look(
        self, *, after: float = LOOK_SECONDS, busy: bool = False, share: float = 0.0
    ) -> str | None:
        self.now += after
        if self.used is not None:
            self.used += (1.0 if busy else share) * min(after, LOOK_SECONDS)
        return self.deadline.missed(self.now, lambda: Activity(self.used, self.read, self.stopped))

    def until_missed(self, *, busy: bool = False, most: float = UNKNOWN) -> float:
        """Seconds without a result until the deadline is missed."""
        began = self.now
        while self.look(busy=busy) is None:
            assert self.now - began < most
        return self.now - began

    def result_after(self, seconds: float) -> None:
        """A result that takes so long, of a worker that computes."""
        for _ in range(1 + int(seconds / LOOK_SECONDS)):
            assert self.look(busy=True) is None
        self.deadline.met()


def nothing() -> Activity:
    """Of such a worker nothing can be said."""
    return UNSEEN


def about(seconds: float) -> object:
    """The looks before and after it, and the first one, count too."""
    return pytest.approx(seconds + LOOK_SECONDS, abs=LOOK_SECONDS)


def test_a_worker_that_uses_no_processor_time_is_dead_after_seconds() -> None:
    watched = Watched()
    assert watched.until_missed() == about(IDLE_SECONDS)


def test_one_that_computes_gets_minutes() -> None:
    watched = Watched()
    assert watched.until_missed(busy=True) == about(BUSY_SECONDS)


def test_one_that_is_waiting_for_a_disk_or_cannot_be_seen_gets_minutes() -> None:
    watched = Watched()
    watched.used = None
    assert watched.until_missed() == about(BUSY_SECONDS)


def test_ranks_that_poll_for_a_stopped_one_do_nothing_and_one_that_polls_a_gpu_does() -> None:
    watched = Watched()
    while watched.look(share=0.005) is None:
        assert watched.now < 1005
    watched = Watched()
    for _ in range(500):
        assert watched.look(share=0.03) is None


@pytest.mark.parametrize("loading", [False, True])
def test_one_that_is_stopped_is_dead_at_once_whatever_it_is_at(loading: bool) -> None:
    watched = Watched((20.0,))
    watched.result_after(10.0)
    if loading:
        watched.deadline.started()
    watched.stopped = True
    assert watched.until_missed() == about(STOPPED_SECONDS)
    # For certain: the next one gets no more time for it.
    watched.stopped = False
    assert watched.until_missed(most=200) <= FACTOR * 10 + 2


def test_who_stopped_all_processes_and_lets_this_one_go_on_first_harms_no_worker() -> None:
    watched = Watched()
    assert watched.look() is None
    watched.stopped = True
    assert watched.look(after=600.0) is None
    watched.stopped = False
    for _ in range(3):
        assert watched.look() is None


def test_one_that_reads_files_is_not_idle() -> None:
    watched = Watched()
    for _ in range(100):
        watched.read += 100_000
        assert watched.look() is None
    began = watched.now
    while watched.look() is None:
        watched.read += 100  # of what wakes threads
    assert watched.now - began == about(IDLE_SECONDS)


def test_one_that_does_nothing_while_it_loads_gets_as_long_as_the_last_one_took() -> None:
    watched = Watched()
    watched.deadline.started()
    assert watched.until_missed() == about(IDLE_LOADING_SECONDS)
    watched = Watched()
    watched.deadline.started()
    for _ in range(int(10 / LOOK_SECONDS)):
        assert watched.look() is None
    watched.load(())
    watched.deadline.started()
    assert watched.until_missed() == pytest.approx(FACTOR * 10, abs=3)


def test_a_moment_of_work_begins_the_idle_time_anew() -> None:
    watched = Watched()
    for look in range(200):
        assert watched.look(busy=look % 4 == 0) is None


def test_results_begin_everything_anew() -> None:
    watched = Watched()
    for _ in range(200):
        for _ in range(5):
            assert watched.look() is None
        watched.deadline.met()


def test_slow_results_make_the_deadline_longer_and_fast_ones_shorter_again() -> None:
    watched = Watched()
    watched.result_after(100.0)
    assert watched.until_missed() == about(FACTOR * 100)
    watched = Watched()
    watched.result_after(100.0)
    assert watched.until_missed(busy=True) == about(FACTOR * 100)
    watched = Watched()
    watched.result_after(100.0)
    for _ in range(10_000):
        watched.deadline.met()
    assert watched.until_missed() == about(IDLE_SECONDS)


def test_a_slow_warm_up_makes_the_deadline_of_a_busy_worker_longer() -> None:
    watched = Watched((10.0, 0.0, 200.0, 1.0))
    assert watched.until_missed(busy=True) == about(FACTOR * 200)
    assert Watched((10.0, 0.0, 200.0, 1.0)).until_missed() == about(IDLE_SECONDS)


@pytest.mark.parametrize("busy", [False, True])
def test_a_machine_that_slept_costs_no_worker_its_life(busy: bool) -> None:
    watched = Watched()
    for _ in range(4):
        assert watched.look(after=3600.0, busy=busy) is None
    watched.deadline.met()
    # Each of these looks, but for the first one, counted for two.
    assert watched.until_missed() == about(FACTOR * 3 * 2 * LOOK_SECONDS)


def test_who_missed_it_in_a_row_gets_more_and_more_time() -> None:
    watched = Watched()
    for times in (1, 2, 4, 8, 8):
        assert watched.until_missed() == about(times * IDLE_SECONDS)
        watched.load((2.0,))
    watched.deadline.met()
    assert watched.until_missed() == about(IDLE_SECONDS)


def test_what_is_missed_is_said() -> None:
    watched = Watched()
    while (how := watched.look()) is None:
        pass
    assert how == "for 2 s, and used no processor time"


def test_a_first_start_takes_as_long_as_it_takes_and_a_later_one_does_not() -> None:
    deadline, now = Deadline(), 0.0
    deadline.started()
    for _ in range(100_000):
        now += LOOK_SECONDS
        assert deadline.missed(now, nothing) is None
    deadline.loaded(100.0)
    deadline.ready()
    deadline.started()
    for _ in range(10):  # each phase has all of the time
        for _ in range(int(FACTOR * 100 / LOOK_SECONDS)):
            now += LOOK_SECONDS
            assert deadline.missed(now, nothing) is None
        deadline.loaded(100.0)
    while (how := deadline.missed(now := now + LOOK_SECONDS, nothing)) is None:
        assert now < 100_000
    assert how == "for 400 s"

"""When the next step is sent."""

from __future__ import annotations

import pytest

from tgi_async.pace import N_STEPS, Pace


def running(*seconds: float, ahead: bool = False) -> tuple[Pace, float]:
    """A pace after steps that took so long, one behind the other, and the time: another begins."""
    pace, now = Pace(ahead=ahead), 100.0
    pace.sent(now)
    for one in seconds:
        pace.sent(now)
        now += one
        pace.done(now)
    return pace, now


def test_the_next_step_is_sent_a_little_before_the_end_of_the_one_that_runs() -> None:
    pace, now = running(*[0.08] * N_STEPS)
    assert pace.left(now) == pytest.approx(0.08 - 0.005 - 0.01)
    assert pace.left(now + 0.05) == pytest.approx(0.015)
    assert pace.left(now + 0.07) == 0


def test_the_shortest_of_the_last_steps_counts() -> None:
    pace, now = running(*[0.08] * N_STEPS, 0.04, 0.2)
    assert pace.left(now) == pytest.approx(0.04 - 0.005 - 0.005)
    pace, now = running(0.04, *[0.08] * N_STEPS)
    assert pace.left(now) == pytest.approx(0.065)


@pytest.mark.parametrize("seconds", [[0.08] * (N_STEPS - 1), [0.08] * N_STEPS + [0.019], []])
def test_where_little_is_known_or_to_win_it_is_sent_at_once(seconds: list[float]) -> None:
    pace, now = running(*seconds)
    assert pace.left(now) == 0


def test_a_worker_that_has_nothing_to_do_gets_its_step_at_once() -> None:
    pace, now = running(*[0.08] * N_STEPS)
    pace.done(now + 0.08)
    assert pace.left(now + 0.08) == 0
    pace.sent(now + 5)
    assert pace.left(now + 5) == pytest.approx(0.065)


def test_a_gpu_gets_its_steps_as_early_as_can_be() -> None:
    pace, now = running(*[0.08] * N_STEPS, ahead=True)
    assert pace.left(now) == 0


def test_a_new_worker_begins_anew() -> None:
    pace, now = running(*[0.08] * N_STEPS)
    pace.lost()
    pace.sent(now)
    assert pace.left(now) == 0

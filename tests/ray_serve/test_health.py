"""When a replica is to be replaced."""

from __future__ import annotations

import pytest

from tgi_async.ray_serve.health import FACTOR, LEAST_SECONDS, Health, Unwell

LIMIT = LEAST_SECONDS


def test_an_idle_engine_is_well_for_ever() -> None:
    health = Health(1.0)
    for now in (0.0, LIMIT, 10 * LIMIT):
        health.check(now, ready=True, busy=False, state=0)


def test_a_busy_engine_is_well_as_long_as_it_moves() -> None:
    health = Health(1.0)
    for step in range(100):
        health.check(step * LIMIT / 2, ready=True, busy=True, state=step)
    last = 99 * LIMIT / 2
    health.check(last + LIMIT - 1, ready=True, busy=True, state=99)
    with pytest.raises(Unwell, match=r"has requests and made no progress for 600 s"):
        health.check(last + LIMIT, ready=True, busy=True, state=99)
    health.check(last + LIMIT + 1, ready=True, busy=True, state=100)


def test_a_worker_that_is_being_replaced_is_no_reason_until_it_takes_too_long() -> None:
    health = Health(1.0)
    health.check(0, ready=True, busy=True, state=0)
    health.check(LIMIT - 1, ready=False, busy=True, state=1)
    with pytest.raises(Unwell, match="was not ready for 601 s"):
        health.check(LIMIT + 1, ready=False, busy=True, state=2)
    health.check(LIMIT + 2, ready=True, busy=True, state=3)


def test_a_slow_start_gives_a_restart_more_time() -> None:
    health = Health(LIMIT)
    health.check(0, ready=True, busy=False, state=0)
    health.check(FACTOR * LIMIT - 1, ready=False, busy=False, state=0)
    with pytest.raises(Unwell):
        health.check(FACTOR * LIMIT, ready=False, busy=False, state=0)


def test_the_first_look_begins_the_time() -> None:
    health = Health(1.0)
    health.check(5 * LIMIT, ready=False, busy=False, state=0)

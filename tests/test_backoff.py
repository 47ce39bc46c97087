from __future__ import annotations

from tgi_async.backoff import Backoff


def test_the_first_death_is_followed_by_no_wait() -> None:
    assert Backoff().after(0.0) == 0.0


def test_waits_double_up_to_the_longest_and_stay_there() -> None:
    backoff = Backoff(first=0.5, longest=3.0, healthy=60.0)
    assert [backoff.after(1.0) for _ in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_after_a_healthy_life_it_begins_again() -> None:
    backoff = Backoff(first=0.5, longest=3.0, healthy=60.0)
    found = [backoff.after(lived) for lived in (0.0, 59.9, 59.9, 60.0, 0.0, 0.0)]
    assert found == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0]


def test_no_wait_is_longer_than_the_longest() -> None:
    backoff = Backoff(first=5.0, longest=3.0)
    assert [backoff.after(0.0) for _ in range(3)] == [0.0, 3.0, 3.0]

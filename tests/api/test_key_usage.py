"""What a key uses, where its limits change meanwhile or are below one request."""

from __future__ import annotations

import pytest

from tgi_async.api.key_usage import KeyUsage
from tgi_async.errors import Overloaded, ValidationError
from tgi_async.keys import ApiKey
from tgi_async.scheduler.reservations import Reservation


def use(usage: KeyUsage, key: ApiKey, n_tokens: int = 0) -> None:
    with usage.take(key, 1) as reservations:
        reservation = Reservation("client", 1, 0)
        reservation.n_tokens = n_tokens
        reservations.append(reservation)


def test_what_a_key_had_before_it_got_a_limit_does_not_count() -> None:
    usage = KeyUsage()
    use(usage, ApiKey(name="a", max_concurrent_requests=8), 10**9)
    limited = ApiKey(name="a", max_concurrent_requests=8, max_tokens_per_minute=100)
    use(usage, limited, 120)
    with pytest.raises(Overloaded) as refused:
        use(usage, limited)
    assert refused.value.headers == ((b"retry-after", b"13"),)


def test_a_lower_limit_does_not_hold_for_the_time_before() -> None:
    usage = KeyUsage()
    use(usage, ApiKey(name="a", max_tokens_per_minute=10**6), 900_000)
    lower = ApiKey(name="a", max_tokens_per_minute=100)
    use(usage, lower, 15)
    with pytest.raises(Overloaded) as refused:
        use(usage, lower)
    assert refused.value.headers == ((b"retry-after", b"4"),)


def test_a_request_for_more_texts_than_a_key_may_ever_have_is_wrong() -> None:
    usage = KeyUsage()
    with (
        pytest.raises(ValidationError, match=r"may have 2 texts at once.*Given: 3 in one request"),
        usage.take(ApiKey(name="a", max_concurrent_requests=2), 3),
    ):
        raise AssertionError

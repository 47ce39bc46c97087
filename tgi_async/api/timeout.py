"""How long a request may take, queue and generation together."""

from __future__ import annotations

import math

from tgi_async.errors import ValidationError

HEADER = b"x-request-timeout"
MOST_SECONDS = 86_400


def timeout_of(given: bytes | None, most: int | None) -> float | None:
    """Return the seconds that a request has, from its arrival on; None: any number.

    `given` is the value of the client's header, which can shorten `most`, and never lengthen it.

    Raises:
        ValidationError: it is not a number of seconds.
    """
    if given is None:
        return most
    try:
        seconds = float(given) if given.isascii() and len(given) <= 16 else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MOST_SECONDS:
        shown = given[:40].decode("latin-1")
        raise ValidationError(
            f"the header `X-Request-Timeout` is a number of seconds above 0, at most "
            f"{MOST_SECONDS}. Given: {shown!r}"
        )
    return seconds if most is None else min(seconds, most)

"""How long a request may take, queue and generation together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tgi_async.errors import ValidationError

HEADER = b"x-request-timeout"
MOST_SECONDS = 86_400
_NUMBER = re.compile(rb"[0-9.eE+-]{1,16}")
"""Narrower than float, which takes `inf` and `1_0`, too."""


def timeout_of(given: Sequence[bytes], most: int | None) -> float | None:
    """Return the seconds that a request has, from its arrival on; None: any number.

    `given` are the values of the headers of that name, a client's and those that proxies added.
    Each can shorten `most` and the others, and never lengthen them.

    Raises:
        ValidationError: it is not a number of seconds.
    """
    bounds = [_seconds(value) for value in given]
    if most is not None:
        bounds.append(most)
    return min(bounds, default=None)


def _seconds(given: bytes) -> float:
    try:
        seconds = float(given) if _NUMBER.fullmatch(given) else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_SECONDS:
        shown = given[:40].decode("latin-1")
        raise ValidationError(
            f"the header `X-Request-Timeout` is a number of seconds above 0, at most "
            f"{MOST_SECONDS}. Given: {shown!r}"
        )
    return seconds

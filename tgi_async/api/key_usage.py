"""What the requests of an API key use, against the limits of that key."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from tgi_async.errors import Overloaded, ValidationError
from tgi_async.keys import ApiKey
from tgi_async.scheduler.reservations import Reservation

MOST_IDLE = 4096
"""Keys without requests whose tokens are remembered."""
MOST_RETRY_SECONDS = 60


class _Use:
    def __init__(self) -> None:
        self.n_rows = 0
        self.n_minutes = 0.0
        """For how many minutes what it had was enough, as of `at`: by the limit of the time, which
        may change."""
        self.at = time.monotonic()

    def fade(self) -> None:
        now = time.monotonic()
        self.n_minutes = max(0.0, self.n_minutes - (now - self.at) / 60)
        self.at = now


class KeyUsage:
    """Counts what runs and waits for each key, and what tokens it had.

    Tokens are known when texts end, so a key may get beyond its limit by those of its texts that
    run; what is too much delays the next ones.
    """

    def __init__(self) -> None:
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    @contextmanager
    def take(self, key: ApiKey | None, n_rows: int) -> Iterator[list[Reservation]]:
        """Count a request of so many texts. Yield where to put its reservation.

        Raises:
            ValidationError: the key may never have so many.
            Overloaded: the key has as many texts as it may, or had as many tokens.
        """
        if key is None or not (key.max_concurrent_requests or key.max_tokens_per_minute):
            yield []
            return
        use = self._uses.setdefault(key.name, _Use())
        self._uses.move_to_end(key.name)
        self._check(key, use, n_rows)
        use.n_rows += n_rows
        reservations: list[Reservation] = []
        try:
            yield reservations
        finally:
            use.n_rows -= n_rows
            if key.max_tokens_per_minute is not None:
                n_tokens = sum(one.n_tokens for one in reservations)
                use.n_minutes += n_tokens / key.max_tokens_per_minute
            self._forget()

    def _check(self, key: ApiKey, use: _Use, n_rows: int) -> None:
        most = key.max_concurrent_requests
        if most is not None and n_rows > most:
            raise ValidationError(
                f"this API key may have {most} texts at once (`max_concurrent_requests` of "
                f"{key.name}). Given: {n_rows} in one request"
            )
        if most is not None and use.n_rows + n_rows > most:
            raise Overloaded(
                f"This API key may have {most} texts at once, running and waiting "
                f"(`max_concurrent_requests` of {key.name}). It has {use.n_rows}, and this request "
                f"asks for {n_rows}",
                retry_after=1,
            )
        per_minute = key.max_tokens_per_minute
        if per_minute is None:
            return
        use.fade()
        if use.n_minutes >= 1:
            seconds = math.ceil((use.n_minutes - 1) * 60) + 1
            raise Overloaded(
                f"This API key may have {per_minute} tokens a minute (`max_tokens_per_minute` of "
                f"{key.name}), and had them",
                retry_after=min(seconds, MOST_RETRY_SECONDS),
            )

    def _forget(self) -> None:
        """Forget the keys that were used longest ago, where there are too many."""
        while len(self._uses) > MOST_IDLE:
            name, use = next(iter(self._uses.items()))
            if use.n_rows:
                return
            del self._uses[name]


def within(key: ApiKey, n_prompt: int, max_new_tokens: int, *, given: bool) -> int:
    """Return how many new tokens a prompt gets by the limit of a key.

    `given`: the client asked for just so many, and does not get fewer.

    Raises:
        ValidationError: it is longer than the key may have.
    """
    most = key.max_total_tokens
    if most is None or n_prompt + max_new_tokens <= most:
        return max_new_tokens
    if not given and n_prompt < most:
        return most - n_prompt
    raise ValidationError(
        f"prompt and answer of this API key may have {most} tokens together (`max_total_tokens` of "
        f"{key.name}). Given: a prompt of {n_prompt} and {max_new_tokens} more"
    )

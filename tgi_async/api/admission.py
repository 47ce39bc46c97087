"""Admit requests: reserve their rows on arrival, and free them at the end.

A request that finds no row free waits in the engine's queue. One that finds no room there, or is
evicted for another client, is refused with a time after which to retry.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tgi_async.api.engine_client import EngineClient
from tgi_async.api.key_usage import KeyUsage
from tgi_async.api.limits import Limits
from tgi_async.api.request_context import RequestContext
from tgi_async.errors import Overloaded, TimedOut, TimedOutInQueue
from tgi_async.scheduler.reservations import EVICTED, Reservation

FEWEST_SECONDS, MOST_SECONDS = 1, 60
"""Bounds of Retry-After: OpenAI's clients ignore advice to wait longer than a minute."""
UNKNOWN_SECONDS = 5
N_RELEASES = 64


class Admission:
    """Reserves rows for requests."""

    def __init__(self, engine: EngineClient, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._turnover = Turnover()
        self._usage = KeyUsage()

    @asynccontextmanager
    async def take(self, context: RequestContext, n_rows: int = 1) -> AsyncIterator[None]:
        """Reserve a row for each generation of a request, before any other work on it.

        Raises:
            ValidationError: there are never so many rows.
            Overloaded: there is no room, or no more, because another client needed it, or the API
                key has what it may.
            TimedOut: it has taken as long as it may.
            Unhealthy: the server stops.
        """
        with self._usage.take(context.key, n_rows) as reservations:
            async with self._reserved(context, n_rows) as reservation:
                reservations.append(reservation)
                yield

    @asynccontextmanager
    async def _reserved(self, context: RequestContext, n_rows: int) -> AsyncIterator[Reservation]:
        left = math.inf
        if context.timeout is not None:
            left = context.timeout - (time.monotonic() - context.started)
        if left <= 0:
            raise self._timed_out(context, n_rows, began=False)
        holding = asyncio.timeout(left if left < math.inf else None)

        def leave() -> None:
            holding.reschedule(0.0)  # now: whatever the request waits for is cancelled

        try:
            reservation = self._engine.reserve(context.client, n_rows, context.n_bytes, leave)
        except Overloaded as error:
            raise self._overloaded(str(error), n_rows) from None
        context.reservation = reservation
        try:
            async with holding:
                yield reservation
        except TimeoutError:
            if not holding.expired():
                raise
            if reservation.evicted:
                raise self._overloaded(EVICTED, n_rows) from None
            raise self._timed_out(context, n_rows, began=reservation.began) from None
        except Overloaded as error:
            raise self._overloaded(str(error), n_rows) from None
        finally:
            self._engine.release(reservation)
            if reservation.began:
                self._turnover.released(n_rows, crowded=self._engine.n_waiting > 0)

    def _timed_out(self, context: RequestContext, n_rows: int, *, began: bool) -> TimedOut:
        seconds = f"{context.timeout:g} seconds"
        set_by = "--request-timeout, or the header X-Request-Timeout"
        if began:
            return TimedOut(f"The request took longer than {seconds} ({set_by})")
        return TimedOutInQueue(
            f"The request waited for {seconds} ({set_by}), and was not begun",
            retry_after=self._turnover.refused(n_rows),
        )

    def _overloaded(self, message: str, n_rows: int) -> Overloaded:
        seconds = self._turnover.refused(n_rows)
        if not self._limits.dialect.explains_errors:
            return Overloaded(retry_after=seconds)
        return Overloaded(message, retry_after=seconds)


class Turnover:
    """Measures how fast rows become free, and says when a refused client should retry."""

    def __init__(self) -> None:
        self._releases: deque[tuple[float, int]] = deque(maxlen=N_RELEASES)
        """When rows became free while others waited, and how many."""
        self._crowded = False
        """Whether others waited when a row became free last."""
        self._full_since: float | None = None
        """Since when clients are refused without a known rate."""
        self._next = 0.0
        """The time by which all clients that were asked to retry find rows."""

    def released(self, n_rows: int, *, crowded: bool) -> None:
        """Record that a request ended that had run; `crowded`: others wait."""
        now = time.monotonic()
        self._forget(now)
        self._crowded = crowded
        if crowded or now <= self._next:
            self._releases.append((now, n_rows))
        else:
            # Rows that no request waits for do not show how fast rows become free.
            self._releases.clear()
            self._full_since = None

    def refused(self, n_rows: int) -> int:
        """Return in how many seconds a client should retry that asked for so many rows.

        Refused clients are asked to retry one after another, as rows are given back. As long as it
        is not known how fast that is, they wait for as long again as others have.
        """
        now = time.monotonic()
        self._forget(now)
        rate = self._rate(now)
        if rate:
            self._full_since = None
            self._next = min(max(now, self._next) + n_rows / rate, now + MOST_SECONDS)
            # The sum less `now` may be rounded to a little more.
            return min(max(FEWEST_SECONDS, math.ceil(self._next - now)), MOST_SECONDS)
        if self._full_since is None:
            self._full_since = now
        seconds = min(max(UNKNOWN_SECONDS, math.ceil(now - self._full_since)), MOST_SECONDS)
        self._next = max(self._next, now + seconds)
        return seconds

    def _forget(self, now: float) -> None:
        """Forget a crowd that is gone: the time since then does not show how fast rows become
        free."""
        if not self._crowded and now > self._next:
            self._releases.clear()
        if now > self._next + MOST_SECONDS:
            self._full_since = None

    def _rate(self, now: float) -> float:
        """Return how many rows become free in a second; 0: not known."""
        if len(self._releases) < 2:
            return 0.0
        began, n_first = self._releases[0]
        n_rows = sum(n for _, n in self._releases) - n_first
        return n_rows / max(now - began, 1e-3)

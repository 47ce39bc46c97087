"""Whether an engine gets on: what Serve asks of a replica, and replaces it for.

A worker that is being replaced is not a reason: the engine mends itself, and its requests go on. A
reason is an engine that is gone for good, one that is not ready for much longer than its start
took, and one that has requests and does nothing.
"""

from __future__ import annotations

from collections.abc import Hashable

LEAST_SECONDS = 600.0
"""Longer than what the engine itself waits for a worker that may be busy."""
FACTOR = 3.0


class Unwell(Exception):
    """The replica should be replaced; the message says why."""


class Health:
    """Looks at an engine from time to time. Times are of one monotonic clock, in seconds."""

    def __init__(self, start_seconds: float) -> None:
        self._allowed = max(LEAST_SECONDS, FACTOR * start_seconds)
        self._well_at: float | None = None
        """When it was last seen to be ready and to get on."""
        self._state: Hashable = None

    def check(self, now: float, *, ready: bool, busy: bool, state: Hashable) -> None:
        """Raise Unwell where it was not ready, or busy in the same `state`, for too long."""
        moved = state != self._state
        self._state = state
        if self._well_at is None or (ready and (moved or not busy)):
            self._well_at = now
        seconds = now - self._well_at
        if seconds >= self._allowed:
            how = "has requests and made no progress" if ready else "was not ready"
            raise Unwell(f"the engine {how} for {seconds:.0f} s")

"""When to send the next step, so that who comes while one runs can still be in it.

The next step is to be at the worker when the one that runs ends. Where it is sent as soon as that
one begins, a request that comes right after waits for two whole steps before its own. So it is sent
a little before the end, as far as that is known: from the shortest of the last steps.
"""

from __future__ import annotations

from collections import deque

N_STEPS = 8
LEAST_SECONDS = 0.02
"""Shorter steps are sent as soon as can be: there is little to win."""
MARGIN_SECONDS = 0.005
MARGIN_SHARE = 1 / 8
"""Of a step: together, the time before its end when the next one is sent."""


class Pace:
    """How long the steps of a worker take. Times are of one clock, in seconds.

    `ahead`: it needs the next step as early as can be, as a GPU does, whose kernels are launched
    while the step before runs.
    """

    def __init__(self, *, ahead: bool = False) -> None:
        self._ahead = ahead
        self._took: deque[float] = deque(maxlen=N_STEPS)
        self._n_sent = 0
        """Steps whose results have not come back."""
        self._began = 0.0
        """When the oldest of them began."""

    def sent(self, now: float) -> None:
        """Note that a step is sent."""
        if not self._n_sent:
            self._began = now
        self._n_sent += 1

    def done(self, now: float) -> None:
        """Note that the result of the oldest step is there; the next one has begun."""
        self._took.append(now - self._began)
        self._n_sent -= 1
        self._began = now

    def lost(self) -> None:
        """Forget all: the worker has died."""
        self._took.clear()
        self._n_sent = 0

    def left(self, now: float) -> float:
        """Return for how long the next step need not be sent; 0: send it now."""
        if self._ahead or not self._n_sent or len(self._took) < N_STEPS:
            return 0.0
        shortest = min(self._took)
        if shortest < LEAST_SECONDS:
            return 0.0
        margin = MARGIN_SECONDS + MARGIN_SHARE * shortest
        return max(0.0, self._began + shortest - margin - now)

"""When a worker from which a result is due counts as dead, though its process is alive.

What is measured is the time without any result, and only while this process runs: the time between
two checks counts only up to a bound, so that a suspended machine or a paused container kills no
worker. There are two limits:

- A worker that uses next to no processor time, and waits for no disk, for `IDLE_SECONDS` hangs: it
is stopped (SIGSTOP), or in a deadlock. Compiling, a long prefill, waiting for a GPU and a busy
machine do not look like that.
- One that does use some may be compiling a kernel, or may have a slow device. It gets
  `BUSY_SECONDS`.

Both grow where results took long: to `FACTOR` times the slowest recent one, for a busy
worker also `FACTOR` times the longest phase of its start, for its warm-up runs the largest step.
Where a worker missed its deadline, the next one gets twice as long, until a result comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

LOOK_SECONDS = 0.5
"""Seconds between two checks of a worker from which a result is due."""
IDLE_SECONDS = 5.0
IDLE_SHARE = 0.01
"""Share of a processor's time below which a worker counts as idle. Ranks that wait in gloo for one
that is stopped use 0.3 %; waiting for a GPU polls every millisecond, which takes more."""
TICK_SECONDS = 0.01
"""The unit in which processor time is counted, in seconds."""
BUSY_SECONDS = 300.0
FACTOR = 4.0
DECAY = 0.999
"""Factor by which the slowest result decays with each later one: half after 700."""
MOST_PATIENCE = 8.0


class Deadline:
    """The deadline for results, over all epochs of the workers. Times are of the monotonic clock,
    in seconds."""

    def __init__(self) -> None:
        self._slowest = 0.0
        """Seconds that the slowest recent result took, as far as the checks show."""
        self._longest_phase = math.inf
        """The longest phase of the last start, in seconds; the first start has no limit."""
        self._phases: list[float] = []
        self._patience = 1.0
        self._stalled = 0.0
        self._idle = 0.0
        self._looked: float | None = None
        self._used: float | None = None
        """Processor seconds at the beginning of the idle time."""

    def started(self) -> None:
        """Note that a start of the workers begins."""
        self._phases = []
        self._rest()

    def loaded(self, seconds: float) -> None:
        """Note the duration of a phase of the start that has ended, or that the next one has
        begun."""
        self._phases.append(seconds)
        self._rest()

    def ready(self) -> None:
        """Note that the start is over."""
        self._longest_phase = max(self._phases, default=0.0)
        self._rest()

    def met(self) -> None:
        """Note that a result came."""
        self._slowest = max(self._stalled, self._slowest * DECAY)
        self._patience = 1.0
        self._stalled = self._idle = 0.0
        self._looked = self._used = None

    def missed(self, now: float, processor_seconds: Callable[[], float | None]) -> str | None:
        """Return how a worker from which a result is due missed its deadline, if it did.

        `processor_seconds` returns what the worker has used, None where that is not known.
        """
        if self._looked is None:
            # Where results come all the time, a check costs only this.
            self._looked = now
            return None
        seconds = min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        self._stalled += seconds
        used = processor_seconds()
        allowed = IDLE_SHARE * (self._idle + seconds) + 1.5 * TICK_SECONDS
        if used is not None and self._used is not None and used - self._used <= allowed:
            self._idle += seconds
        else:
            self._idle, self._used = 0.0, used
        if self._idle >= self._patience * max(IDLE_SECONDS, FACTOR * self._slowest):
            return self._give_up(f"for {self._stalled:.0f} s, and used no processor time")
        busy = max(BUSY_SECONDS, FACTOR * max(self._slowest, self._longest_phase))
        if self._stalled >= self._patience * busy:
            return self._give_up(f"for {self._stalled:.0f} s")
        return None

    def _give_up(self, how: str) -> str:
        self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._rest()
        return how

    def _rest(self) -> None:
        """Measure from the next check on."""
        self._stalled = self._idle = 0.0
        self._looked = self._used = None

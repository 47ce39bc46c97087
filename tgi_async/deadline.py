"""When a worker from which a result is due counts as dead, though its process is alive.

What is measured is the time without any result, and only while this process runs: the time between
two checks counts only up to a bound, so that a suspended machine or a paused container kills no
worker. There are three limits:

- A worker that is stopped (SIGSTOP) is lost for certain, whatever it was at. It is seen at a few
checks in a row, as whoever stopped this process too may let it go on first.
- One that uses next to no processor time and reads next to nothing, none of whose threads is about
to run or waits for a disk, hangs, as in a deadlock: it gets `IDLE_SECONDS`. Compiling, a long
prefill, waiting for a GPU, a busy machine and a debugger do not look like that. While it loads it
may wait for files that come slowly over a network, and gets `IDLE_LOADING_SECONDS`, or as long as
the first start takes.
- One that does something may be compiling a kernel, or may have a slow device. It gets
`BUSY_SECONDS`.

The last two grow where results took long: to `FACTOR` times the slowest recent one, for a busy
worker also `FACTOR` times the longest phase of its start, for its warm-up runs the largest step.
While it loads, `FACTOR` times the longest time that it was idle in the last start counts. Where a
worker missed its deadline, the next one gets twice as long, until a result comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tgi_async.processes import Activity

LOOK_SECONDS = 0.5
"""Seconds between two checks of a worker from which a result is due."""
STOPPED_SECONDS = 1.0
IDLE_SECONDS = 2.0
IDLE_LOADING_SECONDS = 15.0
IDLE_SHARE = 0.01
"""Share of a processor's time below which a worker counts as idle. Ranks that wait in gloo for one
that is stopped use 0.3 %; waiting for a GPU polls every millisecond, which takes more."""
IDLE_BYTES = 4096
"""What an idle worker reads in a second at most: what wakes its threads is a read, too."""
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

    def __init__(self, longest_idle: float = math.inf) -> None:
        """`longest_idle` is how long a start like the first one does nothing, in seconds; by
        default nothing is known of it, and it may take any time."""
        self._slowest = 0.0
        """Seconds that the slowest recent result took, as far as the checks show."""
        self._longest_phase = math.inf
        """The longest phase of the last start, in seconds; the first start has no limit."""
        self._longest_idle = longest_idle
        """The longest time that the last start did nothing, in seconds."""
        self._phases: list[float] = []
        self._most_idle = 0.0
        """The same of this start, as far as the checks show."""
        self._loading = False
        self._patience = 1.0
        self._stalled = 0.0
        self._idle = 0.0
        self._stopped = 0.0
        self._looked: float | None = None
        self._before: Activity | None = None
        """What was done by the beginning of the idle time."""

    def of_others(self) -> Deadline:
        """Return one for other workers, which are started as these were."""
        made = Deadline(self._longest_idle)
        made._longest_phase = self._longest_phase
        return made

    def started(self) -> None:
        """Note that a start of the workers begins."""
        self._phases, self._most_idle = [], 0.0
        self._loading = True
        self._rest()

    def loaded(self, seconds: float) -> None:
        """Note the duration of a phase of the start that has ended, or that the next one has
        begun."""
        self._phases.append(seconds)
        self._rest()

    def ready(self) -> None:
        """Note that the start is over."""
        self._longest_phase = max(self._phases, default=0.0)
        self._longest_idle = self._most_idle
        self._loading = False
        self._rest()

    def met(self) -> None:
        """Note that a result came."""
        self._slowest = max(self._stalled, self._slowest * DECAY)
        self._patience = 1.0
        self._rest()

    def missed(self, now: float, activity: Callable[[], Activity]) -> str | None:
        """Return how a worker from which a result is due missed its deadline, if it did.

        `activity` returns what it has done so far.
        """
        if self._looked is None:
            # Where results come all the time, a check costs only this.
            self._looked = now
            return None
        seconds = min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        self._stalled += seconds
        # What happened between two checks is not known: for this there must be so many of them.
        seconds = min(seconds, LOOK_SECONDS)
        found = activity()
        self._stopped = self._stopped + seconds if found.stopped else 0.0
        if self._stopped >= STOPPED_SECONDS:
            return self._give_up("and is stopped", stopped=True)
        if self._is_idle(found, self._idle + seconds):
            self._idle += seconds
            self._most_idle = max(self._most_idle, self._idle)
        else:
            self._idle, self._before = 0.0, found
        if self._idle >= self._patience * self._idle_limit:
            return self._give_up("and used no processor time")
        busy = max(BUSY_SECONDS, FACTOR * max(self._slowest, self._longest_phase))
        if self._stalled >= self._patience * busy:
            return self._give_up()
        return None

    @property
    def _idle_limit(self) -> float:
        if self._loading:
            return max(IDLE_LOADING_SECONDS, FACTOR * self._longest_idle)
        return max(IDLE_SECONDS, FACTOR * self._slowest)

    def _is_idle(self, found: Activity, seconds: float) -> bool:
        """Whether that is how it would look after doing nothing for so long."""
        before = self._before
        if before is None or before.seconds is None or found.seconds is None:
            return False
        allowed = IDLE_SHARE * seconds + 1.5 * TICK_SECONDS
        reads = found.read - before.read > IDLE_BYTES * (seconds + 1)
        return not reads and found.seconds - before.seconds <= allowed

    def _give_up(self, how: str = "", *, stopped: bool = False) -> str:
        said = f"for {self._stalled:.0f} s" + (f", {how}" if how else "")
        if not stopped:
            # Whether it would have gone on is not known.
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._rest()
        return said

    def _rest(self) -> None:
        """Measure from the next check on."""
        self._stalled = self._idle = self._stopped = 0.0
        self._looked = self._before = None

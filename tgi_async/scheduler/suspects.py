"""Which request keeps killing the workers, by what ran when they died.

After each death those that ran are admitted one by one (`Core.reset`). Where the workers die again,
the one that was admitted last and has no token yet is accused: it is admitted first the next time,
before any other. If they die even so, it is the culprit. If not, another one may have killed them,
that was admitted before.

One that kills some steps later is not alone then. Where workers die `N_SHORT` times in a row within
`SHORT_LIFE` steps, the requests that ran at all of these deaths are halved: one half is on trial,
all others of them are held back. If the workers die again, the culprit is among those on trial; if
they live on, these are cleared. Whoever is not suspected runs as ever.

A single request on trial may have been beside another one that kills, or the workers die of
something else. So after a death beside it the same is tried without it. If the workers die even so,
the hunt begins again; if they live on, it is tried once more, and if they die then, it is the
culprit: with it they died `N_ALONE` times, and never without.
"""

from __future__ import annotations

from collections.abc import Collection

from tgi_async.scheduler.request import Request, Status

N_SHORT = 3
N_ALONE = 3
SHORT_LIFE = 32
"""Steps within which a death follows what caused it, where it is seen to."""
MOST_WAITING = 1024
"""Steps for which those on trial may wait for their turn."""


class Suspects:
    """The requests that may have killed the workers. Pure: its events are deaths and steps."""

    def __init__(self) -> None:
        self.accused: Request | None = None
        """The one that is to be admitted first."""
        self._n_short = 0
        self._common: list[Request] = []
        """Those that ran at each of the last `_n_short` deaths."""
        self._suspected: list[Request] = []
        """Those of them that nothing has cleared."""
        self._parked: list[Request] = []
        """Those that were suspected before, while others turned out to kill workers, too."""
        self._narrowed: list[Request] = []
        """Those of them that ran at each death of the trial: the culprit is one of these."""
        self.on_trial: list[Request] = []
        self._left_out: Request | None = None
        """What was on trial alone, while the workers are tried without it."""
        self._n_alone = 0
        """Deaths while the only one on trial ran."""
        self._n_tried = self._n_waited = 0

    @property
    def held(self) -> list[Request]:
        """Those that wait for the end of the trial."""
        if self._left_out is not None:
            return [*self._parked, self._left_out]
        return [*self._parked, *_without(self._suspected, self.on_trial)] if self.on_trial else []

    @property
    def trying(self) -> bool:
        """Whether there is a trial."""
        return bool(self.on_trial) or self._left_out is not None

    def clear(self) -> None:
        """Suspect nobody."""
        self.__init__()  # type: ignore[misc]

    def died(self, first: Request | None, ran: Collection[Request], n_steps: int) -> Request | None:
        """Note a death. Return the culprit, if it is known by now.

        `first` is the one that was admitted last and has no token, if any; `ran` those in the steps
        that were lost; `n_steps` how many steps these workers did before.
        """
        if first is not None and first is self.accused and not set(ran) - {first}:
            self.clear()
            return first
        if long_life := n_steps > SHORT_LIFE and not self.trying:
            self.clear()
        self.accused = first
        if long_life or not ran:
            return None
        among = self.on_trial if self.trying else self._common
        common = [one for one in among if one in ran]
        if not common:
            # The first death, or not the work of one request: begin again with those of this one.
            self._parked, self._n_alone = self.held, 0
            self._n_short = N_SHORT - 1 if self.trying else 0
            self._begin([])
            common = _in_order(ran)
        self._n_short += 1
        self._common = common
        if len(common) == len(self.on_trial) == 1:
            self._n_alone += 1
            if self._n_alone == N_ALONE:
                self.clear()
                return common[0]
            self._leave_out(common[0])
        elif self._n_short >= N_SHORT:
            if not self.trying:
                self._suspected = common
            self._try(common)
        return None

    def stepped(self, *, settled: bool) -> None:
        """Note a step that the workers survived; `settled`: with all that is to run."""
        waits = any(one.status is Status.WAITING for one in self.on_trial)
        if waits or not (settled or self.on_trial):
            self._n_waited += 1
        else:
            self._n_tried += 1

    def released(self, *, idle: bool) -> list[Request]:
        """Return those that need not be held any more, in order of arrival.

        `idle`: nothing else runs, or can.
        """
        tried = self.on_trial if self._left_out is None else [self._left_out]
        alive = any(one.status is not Status.ENDED for one in tried)
        over = self._n_tried > SHORT_LIFE or self._n_waited > MOST_WAITING
        if not self.trying or (alive and not over and not (idle and self._left_out)):
            return []
        before = self.held
        if self._left_out is None:
            self._suspected = _without(self._suspected, self.on_trial)
            self._narrowed = _without(self._narrowed, self.on_trial)
        left = [one for one in self._narrowed if one.status is not Status.ENDED]
        if left and self._n_waited <= MOST_WAITING:
            self._try(left)
        else:
            self.clear()
        alive_ones = [one for one in before if one.status is not Status.ENDED]
        return _in_order(_without(alive_ones, self.held))

    def _try(self, suspects: list[Request]) -> None:
        half = suspects[: (len(suspects) + 1) // 2]
        if half != [self._left_out]:
            self._n_alone = 0
        self._narrowed = suspects
        self._begin(half)

    def _leave_out(self, suspect: Request) -> None:
        self._begin([])
        self._left_out = suspect
        if self.accused is suspect:
            self.accused = None

    def _begin(self, on_trial: list[Request]) -> None:
        self.on_trial, self._left_out = on_trial, None
        if self.accused in self.held:
            self.accused = None
        self._n_tried = self._n_waited = 0


def _in_order(some: Collection[Request]) -> list[Request]:
    return sorted(some, key=lambda one: one.arrival)


def _without(some: list[Request], others: list[Request]) -> list[Request]:
    return [one for one in some if one not in others]

"""Which request keeps killing the workers, told from what ran when they died.

After each death requests are admitted one by one (`Core.reset`). Where the workers die again, the
one that was admitted last and has no token yet is accused: it is admitted first the next time,
before any other. If they die even so, it is the culprit. If not, another one may have killed them,
that was admitted before.

One that kills some steps later is not alone then. Where workers die `N_SHORT` times in a row within
`SHORT_LIFE` steps, the requests that ran at all of these deaths are halved: one half is on trial,
the other is held back. If the workers die again, the culprit is among those on trial; if they live
on, among those that were held. Whoever is not suspected runs as ever, and so do those that are
cleared. The culprit is the request whose workers die `N_ALONE` times while it alone is on trial.

Workers that die for another reason seldom do so in so few steps, so often, and always with the same
half; where they live longer, all are cleared.
"""

from __future__ import annotations

from collections.abc import Collection

from tgi_async.scheduler.request import Request, Status

N_SHORT = 3
N_ALONE = 2
SHORT_LIFE = 32
"""Steps within which a death follows what caused it, where it is seen to."""
MOST_WAITING = 1024
"""Steps for which those on trial may wait for their turn."""


class Suspects:
    """The requests that may have killed the workers. Pure: it is told of deaths and steps."""

    def __init__(self) -> None:
        self.accused: Request | None = None
        """The one that is to be admitted first."""
        self._n_short = 0
        self._common: list[Request] = []
        """Those that ran at each of the last `_n_short` deaths."""
        self.on_trial: list[Request] = []
        self.held: list[Request] = []
        """Those that wait for the end of the trial."""
        self._n_alone = 0
        """Deaths while the only one on trial ran."""
        self._n_tried = self._n_waited = 0

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
        if n_steps > SHORT_LIFE:
            self.clear()
        self.accused = first
        if n_steps > SHORT_LIFE or not ran:
            return None
        if self.on_trial:
            common = [one for one in self.on_trial if one in ran]
            if len(common) == len(self.on_trial) == 1:
                self._n_alone += 1
                if self._n_alone == N_ALONE:
                    self.clear()
                    return common[0]
        else:
            common = [one for one in self._common if one in ran] if self._n_short else []
        if not common:
            # The first death, or not the work of one request: begin again with those of this one.
            self.on_trial, self.held = [], []
            self._n_short, common = 0, list(ran)
        self._n_short += 1
        self._common = common
        if self._n_short >= N_SHORT:
            self._try(common)
        return None

    def stepped(self) -> None:
        """Note a step that the workers survived."""
        if any(one.status is Status.WAITING for one in self.on_trial):
            self._n_waited += 1
        else:
            self._n_tried += 1

    def released(self) -> list[Request]:
        """Return those that need not be held any more, in order of arrival."""
        alive = any(one.status is not Status.ENDED for one in self.on_trial)
        if not self.on_trial:
            return []
        if alive and self._n_tried <= SHORT_LIFE and self._n_waited <= MOST_WAITING:
            return []
        held = [one for one in self.held if one.status is not Status.ENDED]
        if held and self._n_waited <= MOST_WAITING:
            self._try(held)
        else:
            self.clear()
        return sorted((one for one in held if one not in self.held), key=lambda one: one.arrival)

    def _try(self, suspects: list[Request]) -> None:
        half = (len(suspects) + 1) // 2
        if suspects[:half] != self.on_trial:
            self._n_alone = 0
        self.on_trial, self.held = suspects[:half], suspects[half:]
        if self.accused in self.held:
            self.accused = None
        self._n_tried = self._n_waited = 0

"""Requests that kill the workers, among others that keep coming: the core's hunt for them.

A simulation of the core, the engine's part in a death, and workers that a poison kills, or chance.
The same seed gives the same run on any machine.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

from tgi_async.engine import MAX_DEATHS, MOST_FORGIVEN
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import Request, Status, TokenEvent
from tgi_async.wire.messages import CachePool, Sampled, StepDone


class Poison(NamedTuple):
    """When a request kills the workers that compute it."""

    after: int = 1
    """Steps of its own since it was admitted, this one included."""
    length: int = 0
    """Least position, prompt and text together."""
    beside: int = 0
    """Least number of other rows in the step."""
    chance: float = 1.0
    """Of a death at each step at which the rest holds."""
    once: bool = False
    """Only at this step since it was admitted, not at later ones."""


class Run:
    """Innocents that come at a rate, some poisons, and workers that die by chance, too."""

    def __init__(
        self,
        seed: int,
        poisons: list[Poison],
        *,
        rate: float = 0.2,
        most_rows: int = 32,
        most_tokens: int = 80,
        kills: float = 0.0,
        n_clients: int = 4,
    ) -> None:
        """`rate`: of arrivals in a step; `kills`: chance that workers die in a step by
        themselves."""
        self.random = Random(seed)
        self.core = Core(
            Budget([CachePool(4096)], 4, most_rows, 64, 400, lookahead=self.random.randint(0, 1))
        )
        self._rate, self._kills, self._most_tokens = rate, kills, most_tokens
        self._n_clients = n_clients
        self._to_come = list(poisons)
        self.poisons: dict[int, Poison] = {}
        self.live: dict[int, Request] = {}
        self._age: Counter[int] = Counter()
        self._without_token = self._forgiven = 0
        self._n = 0
        self.deaths = 0
        self.failed: dict[int, bool] = {}
        """Whether those that failed are poisons."""
        self.n_ended = 0

    def go(self, n_steps: int, n_before: int = 0) -> None:
        """`n_before` steps without the poisons, and as many as it takes to have no poison left,
        `n_steps` at most."""
        random = self.random
        for now in range(n_before + n_steps):
            if random.random() < self._rate:
                self._submit(None)
            if now >= n_before and self._to_come and random.random() < 0.5:
                self._submit(self._to_come.pop())
            self._step()
            if now >= n_before and self.poisons_gone and not self._kills:
                break

    @property
    def poisons_gone(self) -> bool:
        return not self._to_come and not any(one in self.live for one in self.poisons)

    def drain(self, n_steps: int) -> bool:
        """Without more requests. True if all end."""
        for _ in range(n_steps):
            if not self.live:
                return True
            self._step()
        return False

    def _submit(self, poison: Poison | None) -> None:
        self._n += 1
        random = self.random
        n_prompt = random.randint(1, 60)
        request = Request(
            self._n,
            [random.randrange(1000) for _ in range(n_prompt)],
            random.randint(1, self._most_tokens) if poison is None else 200,
            client=str(random.randrange(self._n_clients)),
        )
        if poison is not None:
            self.poisons[request.id] = poison
        self.core.submit(request)
        self.live[request.id] = request

    def _step(self) -> None:
        while (plan := self.core.plan()) is not None:
            for request in plan.admitted:
                self._age[request.id] = 0
        if not self.core._in_flight:
            assert not self.live, "nothing runs, though something waits"
            return
        step, rows = self.core._in_flight[0]
        kills = False
        for row in rows:
            self._age[row.request.id] += 1
            poison = self.poisons.get(row.request.id)
            kills |= poison is not None and self._triggers(poison, row.request, len(rows))
        if kills or self.random.random() < self._kills:
            self._die()
            return
        sampled = [Sampled(row.row, [self.random.randrange(1000)]) for row in rows if row.samples]
        events = self.core.complete(StepDone(step, sampled, [], [], 0.0, 0.0))
        if events:
            self._without_token = self._forgiven = 0
        for event in events:
            assert isinstance(event, TokenEvent)
            if event.finish_reason is not None:
                self._gone(event.request)

    def _gone(self, request: Request) -> None:
        del self.live[request.id]
        self.n_ended += 1

    def _triggers(self, poison: Poison, request: Request, n_rows: int) -> bool:
        age = self._age[request.id]
        return (
            (age == poison.after if poison.once else age >= poison.after)
            and len(request.tokens) >= poison.length
            and n_rows > poison.beside
            and self.random.random() < poison.chance
        )

    def _die(self) -> None:
        """As `Engine._replay`."""
        self.deaths += 1
        culprit = self.core.died(list(self.live.values()))
        self._without_token += 1
        if culprit is not None and self._forgiven < MOST_FORGIVEN:
            self._forgiven += 1
            self._without_token = 1
        if self._without_token >= MAX_DEATHS:
            self._without_token = self._forgiven = 0
            gone = list(self.live.values())
            self.core.reset(gone)
            for request in gone:
                self._fail(request)
        elif culprit is not None:
            self._fail(culprit)

    def _fail(self, request: Request) -> None:
        self.failed[request.id] = request.id in self.poisons
        self.core.finish(request)
        self._gone(request)
        assert request.status is Status.ENDED

"""Virtual Token Counter: no client gets ahead of another that waits, whoever sends how much.

The queue is driven by a server without blocks: it admits the head while its tokens fit and gives
every running request a token a round. `Ledger` keeps the counters a second time, from the paper.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from property_tests.checked import CheckedCore
from property_tests.ledger import Ledger
from property_tests.model import Violation
from tgi_async.scheduler.fairness import INPUT_COST, OUTPUT_COST, WaitingQueue
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.reservations import Capacity
from tgi_async.scheduler.weights import MOST_WEIGHT, UNIT
from tgi_async.wire.messages import CachePool

MOST_TOKENS = 40
MOST_ROWS = 4
CLIENTS = ("ann", "bob", "eve", "joe", "amy", "max")
WEIGHTS = {"amy": 3, "max": MOST_WEIGHT}
"""Of others it is 1."""


class Server(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.ledger = Ledger(OUTPUT_COST * (MOST_TOKENS + MOST_ROWS))
        self.running: list[Request] = []
        self.emitted: dict[int, int] = {}
        self.n_submitted = 0

    @rule(client=st.sampled_from(CLIENTS), n_prompt=st.integers(1, 20), n=st.integers(1, 20))
    def submit(self, client: str, n_prompt: int, n: int) -> None:
        self.n_submitted += 1
        weight = WEIGHTS.get(client, 1)
        request = Request(self.n_submitted, [0] * n_prompt, n, client=client, weight=weight)
        request.arrival = self.n_submitted
        self.emitted[request.id] = 0
        self.queue.add(request)
        self.ledger.submit(request)

    @rule(client=st.sampled_from(CLIENTS), n=st.integers(2, 12))
    def flood(self, client: str, n: int) -> None:
        for _ in range(n):
            self.submit(client, 8, 8)

    @rule(rounds=st.integers(1, 12))
    def serve(self, rounds: int) -> None:
        for _ in range(rounds):
            self._admit()
            self._emit()

    @precondition(lambda self: self.running)
    @rule()
    def preempt(self) -> None:
        request = max(self.running, key=lambda one: one.arrival)
        self.running.remove(request)
        self.queue.put_back(request)
        self.ledger.put_back(request)

    @precondition(lambda self: len(self.queue) > 0)
    @rule(which=st.integers(0, 9))
    def abort_waiting(self, which: int) -> None:
        waiting = list(self.queue)
        request = waiting[which % len(waiting)]
        self.queue.remove(request)
        self._end(request)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9))
    def abort_running(self, which: int) -> None:
        self._end(self.running.pop(which % len(self.running)))

    def _admit(self) -> None:
        while (request := self.queue.head()) is not None and len(self.running) < MOST_ROWS:
            tokens = sum(one.n_prompt + one.max_new_tokens for one in (*self.running, request))
            if tokens > MOST_TOKENS:
                return
            self.queue.remove(request)
            cost = 0 if request.charged else request.n_prompt
            request.charged = True
            self.queue.charge(request.client, INPUT_COST * request.price * cost)
            self.ledger.admit(request, cost)
            self.running.append(request)

    def _emit(self) -> None:
        for request in list(self.running):
            self.queue.charge(request.client, OUTPUT_COST * request.price)
            self.ledger.emit(request)
            self.emitted[request.id] += 1
            if self.emitted[request.id] == request.max_new_tokens:
                self.running.remove(request)
                self._end(request)

    def _end(self, request: Request) -> None:
        self.queue.ended(request)
        self.ledger.end(request)

    @invariant()
    def is_fair(self) -> None:
        self.ledger.check(self.queue)


TestServer = Server.TestCase


def test_a_flood_does_not_starve_a_client_that_asks_now_and_then() -> None:
    server = Server()
    waits = []
    for _ in range(30):
        server.flood("eve", 12)
        server.submit("ann", 8, 8)
        rounds = 0
        while server.ledger.live["ann"]:
            server.serve(1)
            server.is_fair()
            rounds += 1
        waits.append(rounds)
    # Two requests fit at once and take eight rounds: hers is served with the next two.
    assert max(waits) <= 16 + 1


def test_clients_that_always_wait_get_equal_service() -> None:
    server = Server()
    for _ in range(100):
        for client, n_prompt, n in (("ann", 1, 19), ("bob", 19, 1), ("eve", 10, 10)):
            server.submit(client, n_prompt, n)
            server.submit(client, n_prompt, n)
    for _ in range(300):
        server.serve(1)
        server.is_fair()
    assert len(server.queue.queued_clients) == 3
    service = server.ledger.service
    bound = UNIT * server.ledger.bound
    assert max(service.values()) - min(service.values()) <= 2 * bound
    assert min(service.values()) > 4 * bound


def test_clients_that_always_wait_get_service_by_their_weights() -> None:
    server = Server()
    for client, n in ("ann", 30), ("amy", 60), ("max", 250):
        for _ in range(n):
            server.submit(client, 10, 10)
    for _ in range(120):
        server.serve(10)
        server.is_fair()
    assert len(server.queue.queued_clients) == 3
    by_weight = server.ledger.service
    most, bound = max(by_weight.values()), UNIT * server.ledger.bound
    assert most - min(by_weight.values()) <= bound * (1 + 1 / 3)
    assert most > 3 * bound


def test_without_the_lift_a_client_that_was_idle_gets_too_far_behind() -> None:
    class Unlifted(WaitingQueue):
        def _level(self) -> int:
            return 0

    class UnliftedLedger(Ledger):
        def _level(self) -> int:
            return 0

    server = Server()
    server.queue, server.ledger = Unlifted(), UnliftedLedger(server.ledger.bound)
    for _ in range(20):
        server.flood("eve", 4)
        server.serve(8)
    server.submit("ann", 1, 1)
    with pytest.raises(Violation, match="E1"):
        server.is_fair()


class Crowd:
    """Clients that come back as soon as they are served or refused, at a server for four."""

    def __init__(self) -> None:
        budget = Budget(
            pools=[CachePool(16)],
            block_size=4,
            max_rows=4,
            max_batch_prefill_tokens=16,
            max_total_tokens=64,
            capacity=Capacity(max_concurrent=4, max_queued=16),
        )
        self.checked = CheckedCore(budget)

    def come(self, client: str) -> int | None:
        """The number of a new request, None if it is refused."""
        before = set(self.checked.live)
        self.checked.submit(client, [1, 2, 3, 4], 6)
        return max(set(self.checked.live) - before, default=None)

    def fill(self, client: str) -> list[int]:
        """Come until there is no more room."""
        numbers = []
        while (number := self.come(client)) is not None:
            numbers.append(number)
        return numbers

    def steps(self, n: int) -> None:
        for _ in range(n):
            while self.checked.plan():
                pass
            self.checked.complete()


def test_a_crowd_that_fills_the_queue_keeps_nobody_out_and_is_served_itself() -> None:
    crowd = Crowd()
    eves: list[int] = []
    for _ in range(40):
        eves += crowd.fill("eve")
        ann = crowd.come("ann")
        assert ann is not None
        crowd.steps(12)
        assert ann not in crowd.checked.live
    # Of those that wait, the newest give way: who came first is served all the same.
    oldest = min(number for number in eves if number in crowd.checked.live)
    assert eves.index(oldest) > 40
    assert not crowd.checked.reached["evicted"] > 40


def test_a_full_queue_is_shared_equally_by_all_who_keep_coming() -> None:
    crowd = Crowd()
    for client in ("eve", "ann", "bob", "joe"):
        crowd.fill(client)
    waiting = [crowd.checked.core.reservations.waiting(name) for name in ("eve", "ann", "bob")]
    waiting.append(crowd.checked.core.reservations.waiting("joe"))
    assert sum(waiting) == 20
    assert max(waiting) - min(waiting) <= 1


def test_more_clients_than_places_never_push_each_other_out() -> None:
    crowd = Crowd()
    assert all(crowd.come(f"client {number}") for number in range(20))
    assert [crowd.come(f"client {number}") for number in range(20, 30)] == [None] * 10
    assert not crowd.checked.reached["evicted"]

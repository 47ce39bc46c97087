"""The Virtual Token Counter as the paper tells it, kept beside the core's and never forgotten."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from property_tests.model import require
from tgi_async.scheduler.fairness import INPUT_COST, OUTPUT_COST, WaitingQueue
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.weights import UNIT


class Ledger:
    """Counters, service and queues, which follow each event in the order of the core's own."""

    def __init__(self, bound: float) -> None:
        """`bound` is U, of clients of weight 1, in units of service."""
        self.bound = bound
        self.prices: dict[str, int] = {}
        self.counters: Counter[str] = Counter()
        self.service: Counter[str] = Counter()
        self.queued: dict[str, list[Request]] = {}
        self.live: Counter[str] = Counter()
        self.last_left = ""
        self.floor = 0
        self.ahead = 0
        """By how much a client was ahead of its turn when its request was accused."""
        self.held: list[Request] = []
        self.seen: dict[str, int] = {}
        self.spans: dict[tuple[str, str], int] = {}
        """Difference of service of two clients when both became backlogged."""

    def submit(self, request: Request) -> None:
        self.live[request.client] += 1
        self.prices[request.client] = UNIT // request.weight
        self._queue(request)

    def put_back(self, request: Request) -> None:
        self._queue(request)

    def hold(self, request: Request) -> None:
        """The request is kept out of the queue, though it waits."""
        self._unqueue(request)
        self.held.append(request)

    def release(self, request: Request) -> None:
        """What was held is queued again."""
        self.held.remove(request)
        self._queue(request)

    def admit(self, request: Request, n_charged: int, *, accused: bool = False) -> None:
        """The request leaves the queue to run; one that is accused may do so before its turn."""
        client = request.client
        require(client in self.queued, "S3", f"{client} has nothing queued")
        least = min(self.counters[other] for other in self.queued)
        if accused:
            self.ahead = max(self.ahead, self.counters[client] - least)
        else:
            require(
                self.counters[client] == least,
                "E1",
                f"{client} was served at {self.counters[client]} while another had {least}",
            )
            first = self.queued[client][0]
            require(first is request, "S4", f"{request.id} overtook {first.id} of {client}")
        self._unqueue(request)
        self.charge(client, INPUT_COST * n_charged)

    def emit(self, request: Request) -> None:
        self.charge(request.client, OUTPUT_COST)

    def charge(self, client: str, cost: int) -> None:
        """Charge so many units of service, by the client's weight."""
        cost *= self.prices[client]
        self.counters[client] += cost
        self.service[client] += cost

    def end(self, request: Request) -> None:
        client = request.client
        if request in self.queued.get(client, ()):
            self._unqueue(request)
        if request in self.held:
            self.held.remove(request)
        self.live[client] -= 1
        if not self.live.total():
            self.floor = max(self.floor, *self.counters.values())
            self.counters.clear()
            self.seen.clear()

    def check(self, waiting: WaitingQueue) -> None:
        require(sorted(waiting.queued_clients) == sorted(self.queued), "S4", "queued clients")
        known = [one.id for queue in (*self.queued.values(), self.held) for one in queue]
        require(len(waiting) == len(known), "S4", "queue length")
        require(sorted(one.id for one in waiting) == sorted(known), "S4", "queued requests")
        for client in (*self.queued, *+self.live):
            counter = waiting.counter(client)
            require(
                counter == self.counters[client],
                "E5",
                f"{client} has {counter}, its service makes {self.counters[client]}",
            )
        for client, before in self.seen.items():
            require(self.counters[client] >= before, "E5", f"the counter of {client} fell")
        self.seen = dict(self.counters)
        self._check_bounds()

    def _check_bounds(self) -> None:
        spans = {}
        for pair in combinations(sorted(self.queued), 2):
            one, other = pair
            ahead = self.counters[one] - self.counters[other]
            for client, by in (one, ahead), (other, -ahead):
                most = self.bound * self.prices[client] + self.ahead
                require(by <= most, "E1", f"{client} is {by} ahead, in {one} and {other}")
            difference = self.service[one] - self.service[other]
            spans[pair] = self.spans.get(pair, difference)
            received = abs(difference - spans[pair])
            most = self.bound * (self.prices[one] + self.prices[other]) + 2 * self.ahead
            require(received <= most, "E2", f"{one} and {other}: {received}")
        self.spans = spans

    def _queue(self, request: Request) -> None:
        client = request.client
        if client not in self.queued:
            self.counters[client] = max(self.counters[client], self._level())
            self.queued[client] = []
        queue = self.queued[client]
        queue.append(request)
        queue.sort(key=lambda one: one.arrival)

    def _unqueue(self, request: Request) -> None:
        queue = self.queued[request.client]
        queue.remove(request)
        if not queue:
            del self.queued[request.client]
            self.last_left = request.client

    def _level(self) -> int:
        if self.queued:
            return min(self.counters[client] for client in self.queued)
        return max(self.floor, self.counters[self.last_left])

"""The waiting queue: Virtual Token Counter between clients, first come first served within one.

After "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588). Each client has a
counter of the service it received: `INPUT_COST` a prompt token computed for it, `OUTPUT_COST` a
token emitted. The queued client with the least counter is served first. A client that was idle is
lifted when it queues again, so that it cannot save up service it did not ask for. A client's weight
divides what it is charged, so that one of weight 2 gets twice the service of one of weight 1 while
both are queued; counters are in units of 1 / `weights.UNIT`, which every weight divides.

**The bound that holds.** Let M be the most prompt and output tokens of the requests running at
once (`overcommit` times the pool, or one request that fills it), R the most tokens that a step
samples (one a row, or with drafts one more than those of a row), and U = OUTPUT_COST * (M + R). The
counters of two queued clients are at most U apart, and two clients that are queued over the same
span receive service that differs by at most 2U. For when a client's request was last admitted, its
counter was the least, and the least never falls; all it was charged since is that prompt and what
its running requests emitted. This is the paper's argument with its max(wp * L, wq * M), whose first
term is never the greater here. With weights w, the counter of client i is at most U / w_i ahead of
another's by the same argument, and over a span in which i and j are queued, service by weight,
S_i / w_i and S_j / w_j, differs by at most U / w_i + U / w_j. What is outside the paper:

- A prompt is charged when it is admitted, though its chunks are computed over many steps: a client
  is ahead by at most one prompt, which M counts.
- Tokens found in the prefix cache are free: counters measure what was computed, not what was asked.
- A preempted request is queued by its client's counter, which is lifted if nothing else of that
  client was queued. What is computed again is free, so the bound is on new work only. A token that
  was in flight is charged after its row was released, which gives R.
- A request that is accused of the workers' death (`suspects.py`) is admitted before its turn: then
  two clients may be a further U apart.
- The idle are forgotten when all are idle, or beyond `MAX_IDLE_CLIENTS`. They come back at no less
  than the least counter of the queued, so the bound holds; what they were ahead is forgiven.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from tgi_async.scheduler.request import Request

INPUT_COST = 1
OUTPUT_COST = 2

MAX_IDLE_CLIENTS = 4096
"""Idle clients whose counters are remembered; the smallest counters are forgotten first."""


class WaitingQueue:
    """Waiting requests, by client."""

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[int, Request]] = {}
        self._counters: dict[str, int] = {}
        self._live: dict[str, int] = {}
        """Live requests of each client, waiting or running."""
        self._last_left = ""
        """The client that left the queue last."""
        self._floor = 0
        """The counter that a client is raised to at least when no client is queued."""
        self._n_waiting = 0
        self._held: dict[int, Request] = {}
        """Those that wait without being queued, so that they are not the head."""

    def __len__(self) -> int:
        return self._n_waiting

    def __iter__(self) -> Iterator[Request]:
        for queue in self._queues.values():
            yield from queue.values()
        yield from self._held.values()

    def counter(self, client: str) -> int | None:
        """Return the service a client received; None for a client that is not remembered."""
        return self._counters.get(client)

    @property
    def live_clients(self) -> dict[str, int]:
        """Requests of each client that has any, waiting or running."""
        return dict(self._live)

    @property
    def queued_clients(self) -> list[str]:
        return list(self._queues)

    def reset(self, waiting: list[Request], running: list[Request]) -> None:
        """Queue exactly these, whatever was queued before; each list is in order of arrival.

        Counters are kept. Those that ran queue again as preempted requests do.
        """
        self._queues.clear()
        self._held.clear()
        self._n_waiting = len(waiting)
        self._live.clear()
        for request in (*waiting, *running):
            self._live[request.client] = self._live.get(request.client, 0) + 1
        for request in waiting:
            self._counters.setdefault(request.client, self._floor)
            self._queues.setdefault(request.client, OrderedDict())[request.id] = request
        for request in reversed(running):
            self.put_back(request)

    def add(self, request: Request) -> None:
        """Queue a new request behind its client's others."""
        self._live[request.client] = self._live.get(request.client, 0) + 1
        self._queue_of(request.client)[request.id] = request
        self._n_waiting += 1

    def put_back(self, request: Request) -> None:
        """Queue a preempted request before those of its client that came after it."""
        queue = self._queue_of(request.client)
        # There are none but where some were held.
        earlier = list(takewhile(lambda one: one.arrival < request.arrival, queue.values()))
        queue[request.id] = request
        for other in (request, *reversed(earlier)):
            queue.move_to_end(other.id, last=False)
        self._n_waiting += 1

    def head(self) -> Request | None:
        """Return the first request of the queued client with the smallest counter."""
        best: Request | None = None
        best_counter = 0
        for client, queue in self._queues.items():
            counter = self._counters[client]
            if best is None or counter <= best_counter:
                first = next(iter(queue.values()))
                if best is None or (counter, first.arrival) < (best_counter, best.arrival):
                    best, best_counter = first, counter
        return best

    def remove(self, request: Request) -> None:
        """Remove a request that will run or has ended."""
        if self._held.pop(request.id, None) is not None:
            self._n_waiting -= 1
            return
        queue = self._queues[request.client]
        del queue[request.id]
        self._n_waiting -= 1
        if not queue:
            del self._queues[request.client]
            self._last_left = request.client

    @property
    def held(self) -> list[Request]:
        """Those that wait without being queued."""
        return list(self._held.values())

    def hold(self, request: Request) -> None:
        """Keep a queued request from being the head of the queue."""
        self.remove(request)
        self._n_waiting += 1
        self._held[request.id] = request

    def release(self, request: Request) -> None:
        """Queue a request again that was held, in its client's order of arrival."""
        self.remove(request)
        self.put_back(request)

    def charge(self, client: str, cost: int) -> None:
        """Charge service, in units of 1 / `weights.UNIT`, to a client that has a live request."""
        self._counters[client] += cost

    def ended(self, request: Request) -> None:
        """Note that a request of this client is over; it neither waits nor runs any more."""
        client = request.client
        self._live[client] -= 1
        if self._live[client]:
            return
        del self._live[client]
        if not self._live:
            # No request waits, so no client is owed anything: all start equal again.
            self._floor = max(self._floor, *self._counters.values())
            self._counters.clear()
        elif self._counters[client] <= self._level():
            self._floor = max(self._floor, self._counters.pop(client))
        elif len(self._counters) > MAX_IDLE_CLIENTS + len(self._live):
            self._forget()

    def _queue_of(self, client: str) -> OrderedDict[int, Request]:
        queue = self._queues.get(client)
        if queue is None:
            lifted = max(self._counters.get(client, 0), self._level())
            self._counters[client] = lifted
            queue = self._queues[client] = OrderedDict()
        return queue

    def _level(self) -> int:
        """Return the counter that a client is raised to when it queues again."""
        if self._queues:
            return min(self._counters[client] for client in self._queues)
        return max(self._floor, self._counters.get(self._last_left, 0))

    def _forget(self) -> None:
        level = self._level()
        idle = sorted(
            (counter, client)
            for client, counter in self._counters.items()
            if client not in self._live
        )
        for index, (counter, client) in enumerate(idle):
            if counter <= level or index < len(idle) // 2:
                del self._counters[client]

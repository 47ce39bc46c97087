"""Turns of clients at what only some may do at once."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tgi_async.errors import Overloaded


class Turns:
    """Lets `n` in at once, `n_each` of one client, and clients that wait in turn. At most
    `n_waiting` wait. For one event loop."""

    def __init__(self, n: int, n_each: int, n_waiting: int) -> None:
        self._free = n
        self._n_each = n_each
        self._places = n_waiting
        self._inside: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def take(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it in the block. Raises Overloaded."""
        if self._places <= 0:
            raise Overloaded("Too many images are waiting to be fetched")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._places -= 1
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave(client)
            elif turn in self._waiting.get(client, ()):
                self._waiting[client].remove(turn)
                self._settle(client)
            raise
        try:
            yield
        finally:
            self._leave(client)

    def _let_in(self) -> None:
        for client in list(self._waiting):
            while self._free and self._inside[client] < self._n_each and client in self._waiting:
                turn = self._waiting[client].popleft()
                self._settle(client)
                if not turn.cancelled():  # else its task is about to notice
                    self._inside[client] += 1
                    self._free -= 1
                    turn.set_result(None)
                    break

    def _leave(self, client: str) -> None:
        self._inside[client] -= 1
        if not self._inside[client]:
            del self._inside[client]
        self._free += 1
        self._let_in()

    def _settle(self, client: str) -> None:
        """Let the client wait for its next turn behind all others, if it has more to do."""
        self._places += 1
        if self._waiting[client]:
            self._waiting.move_to_end(client)
        else:
            del self._waiting[client]

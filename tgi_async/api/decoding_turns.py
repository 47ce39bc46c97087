"""Decode large bodies one at a time, clients in turn.

To decode two megabytes of small objects takes up to a tenth of a second, in which nobody is served.
One client with a hundred connections would hold up all others for ten seconds, as the event loop
reads all that has come before it goes on. So between two large bodies the loop serves others, for
as long as the last one took.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

LARGE_BODY = 16_384
"""Bytes, which are decoded in 2 ms at most."""

Turn = asyncio.Future[None]


class DecodingTurns:
    """Who decodes a large body, and who is next."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()
        """By client, in the order of their turns. Those who have left stay until theirs comes."""

    def wait(self, client: str) -> Turn:
        """Return what is done once it is this client's turn. It must be given to `leave`."""
        turn: Turn = asyncio.get_running_loop().create_future()
        if self._taken:
            self._waiting.setdefault(client, deque()).append(turn)
        else:
            self._taken = True
            turn.set_result(None)
        return turn

    def leave(self, turn: Turn, seconds: float = 0.0) -> None:
        """End a turn that took so long, or wait for none any more."""
        if not turn.cancel() and not turn.cancelled():
            asyncio.get_running_loop().call_later(seconds, self._next)

    def _next(self) -> None:
        while self._waiting:
            client, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False

"""The latest events of a stream, as they were sent."""

from __future__ import annotations

from collections import deque
from itertools import islice

OVERHEAD = 100
"""Bytes that an event takes beyond its text, about."""


class History:
    """Events by their number, of which the oldest ones may be dropped.

    `base` is the id of the event before the first one; None where there is none.
    """

    def __init__(self, base: bytes | None = None) -> None:
        self._base = base
        self._events: deque[bytes] = deque()
        self.first = 0
        """The number of the oldest event that is kept."""
        self.end = 0
        """The number of the next event."""
        self.n_bytes = 0

    def add(self, event: bytes) -> None:
        """Add an event, whose last line but the empty one is its id."""
        self._events.append(event)
        self.end += 1
        self.n_bytes += len(event) + OVERHEAD

    def since(self, place: int) -> list[bytes]:
        """Return the events from this number on, which are all kept."""
        return list(islice(self._events, place - self.first, None))

    def place_after(self, id: bytes) -> int | None:
        """Return the number of the event after the one with this id; None: that is not kept."""
        if id == self._base and self.first == 0:
            return 0
        ending = b"\nid: %b\n\n" % id
        for place in range(len(self._events) - 1, -1, -1):
            if self._events[place].endswith(ending):
                return self.first + place + 1
        return None

    def drop_before(self, place: int, n_bytes: int) -> int:
        """Drop the oldest events before this number until `n_bytes` are left. Return how many bytes
        that freed."""
        before = self.n_bytes
        while self.n_bytes > n_bytes and self.first < place:
            self.n_bytes -= len(self._events.popleft()) + OVERHEAD
            self.first += 1
        return before - self.n_bytes

"""The streams that clients may go on with from memory."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from tgi_async.api.resume.line import Line
from tgi_async.telemetry.metrics import Metrics

MOST_BYTES = 64 * 2**20
"""Of the events of all streams that are kept."""
MOST_BYTES_OF_ONE = 2**20
STREAM_BYTES = 4096
"""What a stream takes beyond its events, about."""


class Key(NamedTuple):
    """Who may go on with a stream: an account, with the same request and the stream's seed."""

    account: str
    request: bytes
    seed: int


class Kept(Protocol):
    """A stream that may outlive its connection."""

    def take_over(self, line: Line, id: bytes) -> bool:
        """Go on at another line, behind the event with this id; False: that is not kept."""

    async def end(self) -> None:
        """End its handler, and keep it no longer."""

    def drop(self) -> None:
        """Keep it no longer."""


class Streams:
    """Streams by key, and the memory that their events take.

    `window` is for how many seconds a stream is kept without a connection.
    """

    def __init__(self, window: float, metrics: Metrics) -> None:
        self.window = window
        self.metrics = metrics
        self.n_bytes = 0
        self._by_key: dict[Key, Kept] = {}
        self._whole: dict[Key, Kept] = {}
        """Those that are complete and have no connection, the oldest first."""

    def get(self, key: Key) -> Kept | None:
        """Return the stream with this key."""
        return self._by_key.get(key)

    def add(self, key: Key, stream: Kept) -> None:
        """Keep a stream."""
        self._by_key[key] = stream
        self.n_bytes += STREAM_BYTES

    def remove(self, key: Key, n_bytes: int) -> None:
        """Drop a stream whose events take `n_bytes`."""
        del self._by_key[key]
        self._whole.pop(key, None)
        self.n_bytes -= STREAM_BYTES + n_bytes

    def mark(self, key: Key, *, whole: bool) -> None:
        """Note whether a stream is complete and without a connection: the first to be dropped."""
        if whole:
            self._whole[key] = self._by_key[key]
        else:
            self._whole.pop(key, None)

    def make_room(self) -> None:
        """Drop complete streams until the others fit, or none is left."""
        while self.n_bytes > MOST_BYTES and self._whole:
            next(iter(self._whole.values())).drop()

    async def close(self) -> None:
        """End all streams."""
        for stream in list(self._by_key.values()):
            await stream.end()

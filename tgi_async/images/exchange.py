"""One request and its response, over HTTP/1.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import h11

from tgi_async.images.addresses import Place, not_fetched

PIECE = 1 << 16
"""Bytes that are read at once."""
EVENTS = 32
"""Parts of an answer after which others get their turn: what is read at once may have thousands."""


class Answer(NamedTuple):
    """The head of a response."""

    status: int
    headers: dict[str, str]
    """By names in lower case; of several the last."""

    def header(self, name: str, absent: str = "") -> str:
        return self.headers.get(name, absent)

    @property
    def size(self) -> int | None:
        """How many bytes its body has, if that is said."""
        text = self.header("content-length")
        return int(text) if text else None


class Exchange:
    """Asks for one thing. Whatever is not HTTP in the answer raises Refused."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._n_events = 0

    async def get(self, place: Place, headers: list[tuple[str, str]]) -> Answer:
        """Ask, and return the head of the response."""
        request = h11.Request(
            method="GET", target=place.target, headers=[("Host", place.shown), *headers]
        )
        self._writer.write(self._http.send(request) or b"")
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                found = {
                    name.decode("latin-1"): value.decode(errors="replace")
                    for name, value in event.headers
                }
                return Answer(event.status_code, found)

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body, in pieces."""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def _event(self) -> h11.Event:
        self._n_events += 1
        if self._n_events % EVENTS == 0:
            await asyncio.sleep(0)
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(PIECE))
        except (h11.RemoteProtocolError, ValueError, OSError):
            raise not_fetched("its server broke off, or did not answer in HTTP") from None
        if isinstance(event, h11.ConnectionClosed) or not isinstance(event, h11.Event):
            raise not_fetched("its server broke off")
        return event

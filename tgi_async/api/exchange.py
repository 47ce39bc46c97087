"""One request's answer: either whole or as a stream of server-sent events.

A stream writes one body message at a time and waits until the server has taken it, so a client that
stops reading holds one encoded message here; what its generation emits meanwhile gathers in the
engine's bounded buffer and comes out as one larger message. Where the server has a `Direct` writer
and the client keeps up, there is nothing to wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
from starlette.types import Scope, Send

from tgi_async.api.error_reply import ErrorForm, as_tgi
from tgi_async.errors import ServerError

KEEP_ALIVE_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"
"""Ends the streams of the OpenAI routes, also after an error."""

DIRECT = "tgi_async.direct"
"""The ASGI extension whose `writer` is a `Direct` one."""

HeaderList = list[tuple[bytes, bytes]]

encode = msgspec.json.Encoder().encode


def event(payload: object) -> bytes:
    """One server-sent event holding `payload` as JSON."""
    return b"data: " + encode(payload) + b"\n\n"


class Direct(Protocol):
    """Writes pieces of a body that has begun, without waiting."""

    def keeps_up(self) -> bool:
        """Whether the client takes what it is sent, so that a piece can be written now."""

    def write(self, piece: bytes) -> None:
        """Write a piece, which must not be empty."""


class Exchange:
    """Answers one HTTP request.

    `error_form` makes the reply of an error. `streaming`: the head of an event stream has been
    sent. `finished`: all has been sent.
    """

    def __init__(self, scope: Scope, send: Send, error_form: ErrorForm = as_tgi) -> None:
        self._send = send
        self._error_form = error_form
        offered = scope.get("extensions", {}).get(DIRECT, {})
        self._direct: Direct | None = offered.get("writer")
        self._begun = False
        """Whether an event was sent the usual way, for all layers in between to see."""
        self._sending = False
        self._last_write = 0.0
        self._error_event: Callable[[ServerError], bytes] | None = None
        self.started = time.monotonic()
        self.streaming = False
        self.finished = False
        self.validation_seconds = 0.0
        """From the arrival of the request's head until all its prompts were found admissible."""
        peer = scope.get("client")
        self.peer: str = peer[0] if peer else ""
        """Address of the client, without its port; empty on a Unix socket."""

    async def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer at once, with a whole body."""
        head = [
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        self.finished = True
        await self._send({"type": "http.response.body", "body": body})

    async def open_stream(
        self, headers: Iterable[tuple[bytes, bytes]], error_event: Callable[[ServerError], bytes]
    ) -> None:
        """Begin an event stream; from now on an error is sent as what `error_event` makes of it."""
        self._error_event = error_event
        head = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *headers,
        ]
        self.streaming = True
        self._last_write = time.monotonic()
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def write(self, events: bytes) -> None:
        """Send encoded events; returns when the server has taken them."""
        await self._push(events)
        self._begun = True

    def keeps_up(self) -> bool:
        """Whether `write_now` may be called: nothing waits to be sent, and the server can do so."""
        return (
            self._direct is not None
            and self._begun
            and not self._sending
            and not self.finished
            and self._direct.keeps_up()
        )

    def write_now(self, events: bytes) -> None:
        """Send encoded events, if there are any, in this turn of the event loop."""
        assert self._direct is not None
        if events:
            self._direct.write(events)
            self._last_write = time.monotonic()

    async def close(self, events: bytes = b"") -> None:
        """Send the last events and end the stream."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": events})

    async def fail(self, error: ServerError) -> None:
        """Answer with an error, in the form that fits what has been sent already."""
        if self.finished:
            return
        if self._error_event is not None:
            await self.close(self._error_event(error))
            return
        reply = self._error_form(error)
        await self.reply(
            reply.body,
            status=reply.status,
            content_type=reply.content_type,
            headers=reply.headers,
        )

    def seconds_to_keep_alive(self) -> float:
        """When the stream will have been silent for so long that it needs a sign of life."""
        if not self.streaming or self._sending:
            return KEEP_ALIVE_SECONDS
        return self._last_write + KEEP_ALIVE_SECONDS - time.monotonic()

    async def keep_alive(self) -> None:
        """Send a comment if the stream has been silent for long enough."""
        if self.streaming and not self.finished and self.seconds_to_keep_alive() <= 0:
            await self._push(b":\n\n")

    async def _push(self, piece: bytes) -> None:
        self._sending = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sending = False
        self._last_write = time.monotonic()


class Captured(Exchange):
    """Keeps the whole reply of another route's handler, for routes that are made of others."""

    def __init__(self, outer: Exchange) -> None:
        super().__init__({"client": (outer.peer, 0)}, outer._send)
        self.body = b""

    async def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Keep the body."""
        self.finished = True
        self.body = body

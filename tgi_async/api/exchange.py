"""The reply to one request: whole, or as a stream of server-sent events.

A stream writes one body message at a time and waits until the server has taken it, so a client that
stops reading holds one encoded message here; what its generation emits meanwhile gathers in the
engine's bounded buffer and comes out as one larger message. Where the server has a `Direct` writer
and the client keeps up, there is nothing to wait for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from starlette.types import Scope, Send

from tgi_async.api.auth import KEY
from tgi_async.api.encoding import Events, HeaderList, encode_events
from tgi_async.api.error_reply import ErrorForm, as_tgi
from tgi_async.api.ignored_fields import HEADER, header_value
from tgi_async.api.request_context import RequestContext
from tgi_async.api.timeout import HEADER as TIMEOUT
from tgi_async.errors import ServerError
from tgi_async.generation import Emitted
from tgi_async.tenants import TENANT

KEEP_ALIVE_SECONDS = 15.0
DIRECT = "tgi_async.direct"
"""The ASGI extension whose `writer` is a `Direct` one."""


class Direct(Protocol):
    """Writes pieces of a body that has begun, without waiting."""

    def keeps_up(self) -> bool:
        """Return whether the client reads what it is sent, so that a piece can be written now."""

    def write(self, piece: bytes) -> None:
        """Write a piece, which must not be empty."""


class Exchange:
    """Answers one HTTP request.

    `error_form` makes the reply of an error. `streaming`: the head of an event stream has been
    sent. `finished`: all has been sent.

    The head of a stream that is opened late goes out with the first event, or when the client has
    heard nothing for KEEP_ALIVE_SECONDS. Until then an error has its own status.
    """

    def __init__(self, scope: Scope, send: Send, error_form: ErrorForm = as_tgi) -> None:
        self._send = send
        self._error_form = error_form
        offered = scope.get("extensions", {}).get(DIRECT, {})
        self._direct: Direct | None = offered.get("writer")
        self._begun = False
        """Whether an event was sent through ASGI, for all layers in between to see."""
        self._sending = False
        self._last_write = 0.0
        self._error_events: Callable[[ServerError], Events] | None = None
        self._late_head: HeaderList | None = None
        """The head of a stream that is open and has sent nothing."""
        self.streaming = False
        self.finished = False
        peer = scope.get("client")
        headers = dict(scope.get("headers", ()))
        self.context = RequestContext(
            peer=peer[0] if peer else "",
            authorization=headers.get(b"authorization", b""),
            key=scope.get(KEY),
            of_tenant=scope.get(TENANT, ""),
        )
        self.asked_timeouts = [value for name, value in scope.get("headers", ()) if name == TIMEOUT]
        """The headers of that name, as they are."""

    def numbered(
        self,
        events_of: Callable[[Emitted], Events],
        choice: int = 0,
        n_choices: int = 1,
        *,
        each: bool = False,
    ) -> Callable[[Emitted], Events]:
        """Return `events_of`, the events of one of the choices, as this exchange wants them.

        `each`: a token may have several events.
        """
        return events_of

    async def streamed(self, write: Callable[[Exchange], Awaitable[None]]) -> None:
        """Answer with the stream that `write` sends."""
        await write(self)

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
            *self._ignored_header(),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        self.finished = True
        await self._send({"type": "http.response.body", "body": body})

    async def open_stream(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        error_events: Callable[[ServerError], Events],
        *,
        late: bool = False,
    ) -> None:
        """Begin an event stream; errors in it are sent as the events of `error_events`.

        `late`: its head waits for the first event.
        """
        self._error_events = error_events
        head = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *headers,
            *self._ignored_header(),
        ]
        self._last_write = time.monotonic()
        self._late_head = head
        if not late:
            await self._send_head()

    def _ignored_header(self) -> HeaderList:
        ignored = self.context.ignored
        return [(HEADER, header_value(ignored))] if ignored else []

    async def write(self, events: Events) -> None:
        """Send events, at least one; returns when the server has taken them."""
        await self._push(encode_events(events))
        self._begun = True

    def keeps_up(self) -> bool:
        """Return whether `write_now` may be called: nothing waits to be sent before it."""
        return (
            self._direct is not None
            and self._begun
            and not self._sending
            and not self.finished
            and self._direct.keeps_up()
        )

    def write_now(self, events: Events) -> None:
        """Send events, if there are any, in this turn of the event loop."""
        assert self._direct is not None
        if events:
            self._direct.write(encode_events(events))
            self._last_write = time.monotonic()

    async def close(self, events: Events = ()) -> None:
        """Send the last events and end the stream."""
        await self._send_head()
        self.finished = True
        await self._send({"type": "http.response.body", "body": encode_events(events)})

    async def fail(self, error: ServerError) -> None:
        """Answer with an error, in the form that fits what has been sent already."""
        if self.finished:
            return
        if self.streaming and self._error_events is not None:
            await self.close(self._error_events(error))
            return
        self._late_head = None
        reply = self._error_form(error)
        await self.reply(
            reply.body,
            status=reply.status,
            content_type=reply.content_type,
            headers=reply.headers,
        )

    def seconds_to_keep_alive(self) -> float:
        """Return in how many seconds the stream needs a keep-alive comment."""
        if self._sending or not (self.streaming or self._late_head):
            return KEEP_ALIVE_SECONDS
        return self._last_write + KEEP_ALIVE_SECONDS - time.monotonic()

    async def keep_alive(self) -> None:
        """Send a comment if the stream has been silent for long enough."""
        if self.finished or self.seconds_to_keep_alive() > 0:
            return
        if self.streaming or self._late_head:
            await self._push(b":\n\n")

    async def _push(self, piece: bytes) -> None:
        self._sending = True
        await self._send_head()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sending = False
        self._last_write = time.monotonic()

    async def _send_head(self) -> None:
        """Send the head, unless it has been sent."""
        head, self._late_head = self._late_head, None
        if head is not None:
            self.streaming = True
            await self._send({"type": "http.response.start", "status": 200, "headers": head})

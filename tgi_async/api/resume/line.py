"""One connection that a stream is written to."""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.types import Message, Send

from tgi_async.api.encoding import HeaderList
from tgi_async.api.error_reply import ErrorReply
from tgi_async.api.exchange import Direct
from tgi_async.api.resume.history import History
from tgi_async.errors import ServerError

COMMENT = b":\n"
"""A sign of life. No empty line: clients that remember ids take one for an event."""


class Written(Protocol):
    """A stream that may change its line."""

    line: Line | None
    history: History
    head: HeaderList | None
    """None until it is to be sent."""
    finished: bool
    streaming: bool
    failure: ServerError | None
    """What it ended with."""

    @property
    def is_answered(self) -> bool:
        """Whether its handler has ended."""

    def seconds_to_keep_alive(self) -> float:
        """Return in how many seconds a comment is due."""

    async def keep_alive(self) -> None:
        """Have a comment sent if one is due."""

    async def detach(self, line: Line) -> None:
        """Go on without this line, or end."""

    def written(self) -> None:
        """Note that the line took events, or a comment."""

    def last_of_replaced(self) -> bytes:
        """Return the last events for a line that another one took the place of."""

    def reply_to_replaced(self) -> ErrorReply:
        """Return the reply to a line that another one took the place of before it had a head."""


async def nowhere(message: Message) -> None:
    """Send to nobody."""


class Line:
    """Writes the events of `stream` to a connection, from the one with the number `place` on.

    `headers` are added to the stream's.
    """

    def __init__(self, stream: Written, send: Send, direct: Direct | None) -> None:
        self.stream = stream
        self.send = send
        self.place = 0
        self.headers: HeaderList = []
        self.busy = False
        """Whether something is being sent the usual way."""
        self.is_complete = False
        """Whether all of a reply was sent."""
        self._direct = direct
        self._has_head = self._has_event = False
        self._due = False
        """Whether a comment is due."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether there are events that the connection has not taken."""
        return self.busy or self.place < self.stream.history.end

    def keeps_up(self) -> bool:
        """Return whether an event can be written now."""
        return (
            self._direct is not None
            and self._has_event
            and not self.busy
            and self.place == self.stream.history.end
            and self._direct.keeps_up()
        )

    def write_now(self, events: bytes) -> None:
        """Write the events that were added to the history since it kept up."""
        assert self._direct is not None
        self._direct.write(events)
        self.place = self.stream.history.end

    def comment(self) -> None:
        """Send a comment soon."""
        self._due = True
        self.wake()

    def wake(self) -> None:
        """Have `pump` look for what has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def pump(self) -> None:
        """Send what there is, to the end of the stream or until another line takes its place."""
        while True:
            stream = self.stream
            if stream.line is not self:
                if self._has_head:
                    await self._end(stream.last_of_replaced())
                else:
                    await self._refuse(stream.reply_to_replaced())
                return
            if stream.head is not None and not self._has_head:
                self._has_head = True
                headers = [*stream.head, *self.headers]
                await self._push({"type": "http.response.start", "status": 200, "headers": headers})
            elif self.place < stream.history.end:
                events = stream.history.since(self.place)
                self.place = stream.history.end
                await self._push_body(b"".join(events))
                self._has_event = True
                stream.written()
            elif self._due:
                self._due = False
                await self._push_body(COMMENT)
                stream.written()
            elif stream.finished and stream.streaming:
                await self._end(b"")
                self.is_complete = True
                return
            elif stream.is_answered:
                self.is_complete = stream.finished
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    async def _end(self, events: bytes) -> None:
        await self._push({"type": "http.response.body", "body": events})

    async def _refuse(self, reply: ErrorReply) -> None:
        response = reply.response()
        await self._push(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": response.raw_headers,
            }
        )
        await self._end(reply.body)

    async def _push_body(self, piece: bytes) -> None:
        await self._push({"type": "http.response.body", "body": piece, "more_body": True})

    async def _push(self, message: Message) -> None:
        self.busy = True
        await self.send(message)
        self.busy = False

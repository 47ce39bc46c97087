"""A stream that outlives its connection."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from hashlib import blake2b
from itertools import count
from typing import Any

from starlette.types import Scope, Send

from tgi_async.api.encoding import Events, HeaderList, encode, encode_events
from tgi_async.api.error_reply import ErrorForm, ErrorReply
from tgi_async.api.exchange import Exchange
from tgi_async.api.resume.event_id import MOST_CHOICES, EventId, prefix_of, request_hash
from tgi_async.api.resume.history import OVERHEAD, History
from tgi_async.api.resume.line import Line, nowhere
from tgi_async.api.resume.streams import MOST_BYTES, MOST_BYTES_OF_ONE, Key, Streams
from tgi_async.api.resume.trail import OTHER_CHOICES, Told, Trail
from tgi_async.errors import NotResumable, ServerError
from tgi_async.generation import Emitted

log = logging.getLogger(__name__)

HEADER = b"last-event-id"
RETRY = b"retry: 1000\n"
"""Milliseconds after which clients come back, said once."""
REPLACED = "Another connection goes on with this stream"
_STEP = 0x9E3779B97F4A7C15
"""Between the seeds of a stream's generations."""


class ResumableExchange(Exchange):
    """Answers one HTTP request, and with `Last-Event-ID` goes on with the stream of an earlier one.

    The handler writes to it as to any exchange. Events go into a history, from which the line
    sends them. When that is lost, the handler goes on for the window of `streams`, in which
    another request may bring a new line.
    """

    def __init__(self, scope: Scope, send: Send, error_form: ErrorForm, streams: Streams) -> None:
        super().__init__(scope, send, error_form)
        self._streams = streams
        self.line: Line | None = Line(self, send, self._direct)
        self.history = History()
        self.head: HeaderList | None = None
        self.failure: ServerError | None = None
        self._given = [value for name, value in scope.get("headers", ()) if name == HEADER]
        self._request = b""
        self._seed = secrets.randbits(64)
        self._resumed: EventId | None = None
        self._trail: Trail | None = None
        self._numbers = False
        """Whether its events have ids."""
        self._key: Key | None = None
        """Its key, while it is kept."""
        self._dropped = False
        """Whether it must not be kept any more."""
        self._left_at = 0
        """The number of the event that a lost line would have sent next."""
        self._answering: asyncio.Task[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        """Those that wait for the line to take what they wrote."""
        self._expiry: asyncio.TimerHandle | None = None

    # -- for the endpoint -----------------------------------------------------------------------

    def asked(self, path: str, body: bytes, reading: bytes) -> None:
        """Note the request, once it has been read, and how this server understands requests."""
        self._request = request_hash(path, body, self.context.owner, reading)

    def answer(self, handling: Coroutine[Any, Any, None]) -> None:
        """Start the handler."""
        self._answering = asyncio.create_task(handling)
        self._answering.add_done_callback(lambda _: self._wake())

    @property
    def is_answered(self) -> bool:
        """Whether the handler has ended."""
        return self._answering is not None and self._answering.done()

    async def detach(self, line: Line) -> None:
        """Go on without this line, or end."""
        if self.line is not line:
            return
        self.line = None
        self._left_at = line.place
        self._send, self._direct = nowhere, None
        self._let_write()
        if self._key is None:
            await self.end()
            return
        streams = self._streams
        self._expiry = asyncio.get_running_loop().call_later(streams.window, self._expire)
        streams.mark(self._key, whole=self.finished)
        if not self.finished:
            log.info(
                "a stream's connection was lost after %d events; it goes on for %g s",
                self._left_at,
                streams.window,
            )

    def take_over(self, line: Line, id: bytes) -> bool:
        """Go on at another line, behind the event with this id; False: that is not kept."""
        place = self.history.place_after(id)
        if place is None or self._key is None:
            return False
        before, self.line = self.line, line
        line.stream, line.place = self, place
        line.headers = [_resumed("memory")]
        self._send = line.send
        self._let_write()
        if before is not None:
            before.wake()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._streams.mark(self._key, whole=False)
        return True

    async def end(self) -> None:
        """End the handler, and drop the events."""
        self.drop()
        before, self.line = self.line, None
        if before is not None:
            before.wake()
        if (work := self._answering) is not None and work is not asyncio.current_task():
            work.cancel()
            await asyncio.wait((work,))

    def last_of_replaced(self) -> bytes:
        """Return the last events for a line that another one took the place of."""
        if self._error_events is None:
            return b""
        return encode_events(self._error_events(NotResumable(REPLACED)))

    def reply_to_replaced(self) -> ErrorReply:
        """Return the reply to a line that another one took the place of before it had a head."""
        return self._error_form(NotResumable(REPLACED))

    def _expire(self) -> None:
        if not self.finished:
            log.info("nobody came back for a stream: it ends after %d events", self.history.end)
        self.drop()
        if self._answering is not None:
            self._answering.cancel()

    def drop(self) -> None:
        """Keep it no longer."""
        self._dropped = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._key is not None:
            self._streams.remove(self._key, self.history.n_bytes)
            self._key = None

    # -- for the handler ------------------------------------------------------------------------

    async def streamed(self, write: Callable[[Exchange], Awaitable[None]]) -> None:
        """Answer with the stream that `write` sends, or go on with an earlier one.

        Raises:
            ServerError: there is nothing to go on with.
        """
        if self._given and self._given != [b""]:
            if len(self._given) > 1:
                raise NotResumable("There is more than one header Last-Event-ID")
            asked = EventId.parse(self._given[0])
            if asked.request != self._request:
                raise NotResumable(
                    "Last-Event-ID is of another request. A stream goes on with the same body, "
                    "byte for byte, at the same route, of a server with the same flags"
                )
            if await self._goes_on(asked):
                return
        self.context.seeds = _seeds(self._seed)
        # Of the stream, also where it is computed again; no one learns the seed from it.
        seed = self._seed.to_bytes(8, "big")
        self.context.reply_name = blake2b(seed, digest_size=16, person=b"reply").hexdigest()
        await write(self)

    async def _goes_on(self, asked: EventId) -> bool:
        """Go on from memory. Return whether there is nothing else to do."""
        streams = self._streams
        if asked.ended:
            await self.open_stream([], lambda error: ())
            await self.close()
            return True
        key, line = Key(self.context.account, self._request, asked.seed), self.line
        # While one ends, another connection may have begun the next.
        while (live := streams.get(key)) is not None and line is not None:
            if live.take_over(line, self._given[0]):
                self.line = None
                line.wake()
                streams.metrics.stream_resumed("memory")
                log.info("a stream goes on from memory")
                return True
            await live.end()
        self._seed, self._resumed = asked.seed, asked
        self.history = History(self._given[0])
        # Who is lost again before anything came finds it here.
        self._keep()
        return False

    def numbered(
        self,
        events_of: Callable[[Emitted], Events],
        choice: int = 0,
        n_choices: int = 1,
        *,
        each: bool = False,
    ) -> Callable[[Emitted], Events]:
        """Return `events_of` of a choice, whose events have ids. See `Trail.numbered`."""
        if n_choices > MOST_CHOICES:
            if self._resumed is not None:
                raise NotResumable(OTHER_CHOICES)
            return events_of
        if self._trail is None:
            prefix = prefix_of(self._seed, self._request)
            self._trail = Trail(prefix, n_choices, self._resumed, self._caught_up)
            self._numbers = True
        return self._trail.numbered(events_of, choice, each=each)

    async def open_stream(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        error_events: Callable[[ServerError], Events],
        *,
        late: bool = False,
    ) -> None:
        if self._resumed is not None and self.line is not None:
            # Not of the stream: a line that takes it over has it from memory.
            self.line.headers = [_resumed("recomputed")]
        await super().open_stream(headers, error_events, late=late)

    async def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        if self._given and status == 200:
            self.context.ignore(["Last-Event-ID"])  # of whole replies there are no events
        await super().reply(body, status=status, content_type=content_type, headers=headers)

    async def write(self, events: Events) -> None:
        if (trail := self._trail) is not None and trail.is_behind and _of_choice(events):
            await trail.caught_up()
        if not self._add(events):
            return
        await self._send_head()
        self._wake()
        while self.line is not None and self.line.is_behind:
            writer = asyncio.get_running_loop().create_future()
            self._writers.append(writer)
            await writer

    def keeps_up(self) -> bool:
        trail = self._trail
        if trail is None or trail.is_behind:
            return False
        line = self.line
        return self.streaming if line is None else line.keeps_up()

    def write_now(self, events: Events) -> None:
        added = self._add(events)
        if added and self.line is not None:
            self.line.write_now(added)
            self._last_write = time.monotonic()

    async def close(self, events: Events = ()) -> None:
        self._add(events, last=True)
        await self._send_head()
        self.finished = True
        self._wake()

    async def fail(self, error: ServerError) -> None:
        if isinstance(error, NotResumable):
            self._streams.metrics.stream_resumed("mismatched")
            log.warning("a stream cannot go on: %s", error)
        self.failure = error
        # Its events are no place to go on from: the client may try again.
        self.drop()
        self._numbers = False
        self._resumed = None
        await super().fail(error)

    def seconds_to_keep_alive(self) -> float:
        self._sending = self.line is None or self.line.busy
        return super().seconds_to_keep_alive()

    async def _push(self, piece: bytes) -> None:
        """Send a comment."""
        await self._send_head()
        if self.line is not None:
            self.line.comment()

    async def _send_head(self) -> None:
        head, self._late_head = self._late_head, None
        if head is not None:
            self.head = head
            self.streaming = True
            self._wake()

    # -- its events -----------------------------------------------------------------------------

    def _add(self, events: Events, *, last: bool = False) -> bytes:
        """Add events to the history; return those that the client does not have."""
        added: list[bytes] = []
        history = self.history
        if not self._numbers:
            if self._resumed is not None and events:
                raise NotResumable("A stream with calls of tools like TGI's cannot go on")
            if events:
                added = [encode_events(events)]
                history.add(added[0])
        else:
            assert self._trail is not None
            for event in events:
                id = self._trail.id_of(event, last=last and event is events[-1])
                if id is None:
                    continue
                payload = event.payload if isinstance(event, Told) else event
                retry = b"" if history.end else RETRY
                piece = b"data: %b\n%bid: %b\n\n" % (encode(payload), retry, id)
                history.add(piece)
                added.append(piece)
        if not added:
            return b""
        if self._key is None and self._numbers and not self._dropped:
            self._keep()
        piece = b"".join(added)
        self._streams.n_bytes += len(piece) + OVERHEAD * len(added) if self._key else 0
        if history.n_bytes > MOST_BYTES_OF_ONE or self._streams.n_bytes > MOST_BYTES:
            self._make_room()
        return piece

    def _keep(self) -> None:
        self._key = Key(self.context.account, self._request, self._seed)
        self._streams.add(self._key, self)

    def _make_room(self) -> None:
        """Drop events until those that are kept fit."""
        history, streams, line = self.history, self._streams, self.line
        if self._key is None:
            history.drop_before(line.place if line else history.end, 0)
            return
        streams.make_room()
        beyond = max(history.n_bytes - MOST_BYTES_OF_ONE, streams.n_bytes - MOST_BYTES)
        place = line.place if line else self._left_at
        freed = history.drop_before(place, max(0, history.n_bytes - beyond))
        streams.n_bytes -= freed
        if line is None and freed < beyond:
            log.info("a stream without a connection has written too much: it ends")
            self._expire()

    def _caught_up(self) -> None:
        self._streams.metrics.stream_resumed("recomputed")
        log.info("a stream goes on, computed again")

    def written(self) -> None:
        """Note that the line took events, or a comment."""
        self._last_write = time.monotonic()
        self._let_write()

    def _let_write(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)

    def _wake(self) -> None:
        if self.line is not None:
            self.line.wake()


def _of_choice(events: Events) -> bool:
    return any(type(event) is Told for event in events)


def _resumed(how: str) -> tuple[bytes, bytes]:
    return b"x-tgi-resumed", how.encode()


def _seeds(first: int) -> Iterator[int]:
    """Return the seeds of a stream's generations, in order."""
    return (seed % 2**64 for seed in count(first, _STEP))

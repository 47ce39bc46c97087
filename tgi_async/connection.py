"""uvicorn's HTTP/1.1 with bounds.

What a client may send before a route sees its request is bounded in size and in time. Offers to
switch to another protocol are ignored, and answered in HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tgi_async.api.body import BODY_SECONDS
from tgi_async.api.exchange import DIRECT
from tgi_async.errors import RETRY_AFTER_SECONDS
from tgi_async.refusal import GOAWAY, ConnectionRefused
from tgi_async.reply_cycle import BodyWriter, ReplyCycle

log = logging.getLogger(__name__)

MOST_HEAD_BYTES = 65_536
MOST_URL_BYTES = 16_384
MOST_HEADERS = 256
HEAD_SECONDS = 30.0
"""Time limit for a request's head, counted from its first byte or from the connection."""
LINGER_SECONDS = 5.0
"""Time that a client gets to read a last reply while it still sends."""
READ_SECONDS = 60.0
"""Time that a client gets to read what fills the socket's buffer. What its text goes on by in the
meantime is kept as tokens, at most as many as it asked for."""
RETRY = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
VERSIONS = ("0.9", "1.0", "1.1")


class Connection(HttpToolsProtocol):
    """One client's connection. Each request's scope has a `BodyWriter` in the extension DIRECT.

    uvicorn's `limit_concurrency` is the most connections: for one more, the one that has been idle
    for longest is closed, and if none is idle the new one gets a 503.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.url = b""
        self.idle_since: float | None = None
        """Time since which no request is being answered, by the loop's clock; None while one is."""
        self._running: ReplyCycle | None = None
        self._in_head = False
        """Whether a request's head is arriving."""
        self._reported = False
        self._n_unreported = 0
        """Bytes that arrived since the parser last reported anything."""
        self._deaf = False
        """Whether further input is ignored."""
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        """Ends the connection, unless the client reads what is there."""

    @property
    def is_new(self) -> bool:
        """Whether no request has come yet."""
        return self.cycle is None and not self._deaf

    # -- the socket -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.limit_concurrency
        if most is not None and len(self.connections) > most and not make_room(self.connections):
            self._deaf = True
            full = ConnectionRefused(
                503, "The server has as many connections as it can take", [RETRY]
            )
            transport.write(full.reply("", self.server_state.default_headers))
            transport.close()
            return
        self.idle_since = self.loop.time()
        self._wait(HEAD_SECONDS, self._miss_head)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(READ_SECONDS, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def _cut_off(self) -> None:
        """Give up on a client that does not read; its request ends as if it had left."""
        log.info(
            "cut off %s, which has not read what it was sent for %g seconds; what was computed "
            "for it ends",
            self.client,
            READ_SECONDS,
        )
        self._reading = None
        self.transport.abort()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reading()
        self._unset_keepalive_if_required()
        for cycle in (self._running, *(queued for queued, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._reported = False
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self.refuse(self._reason(error))
            return
        self._n_unreported = 0 if self._reported else self._n_unreported + len(data)
        if self._n_unreported > MOST_HEAD_BYTES:
            self.refuse(_too_long("head" if self._in_head else "trailer"))
        elif self._timer is None and (self._in_head or self._is_idle()):
            self._wait(HEAD_SECONDS, self._miss_head)

    def _feed(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                end_of_head: int = upgrade.args[0]
            # The parser stopped, as another protocol might follow. None does, so a parser that does
            # not see the offer continues.
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(head)
            rest = memoryview(rest)[end_of_head:]

    def _head_without_upgrade(self) -> bytes:
        line = b"%b %b HTTP/%b\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        kept = (b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != b"upgrade")
        return line + b"".join(kept) + b"\r\n"

    # -- what the parser finds ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._reported = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MOST_URL_BYTES:
            raise ConnectionRefused(414, f"The URL is longer than {MOST_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers follow a body; nothing here needs them.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Queue the request behind those that came before it."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return  # The same head is parsed again, without the offer.
        self._in_head = False
        self._reported = True
        self._stop_waiting()
        self._check_head()
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = self.parser.get_http_version()
        url = None if self.url == b"*" else httptools.parse_url(self.url)
        raw_path = b"*" if url is None else url.path or b"/"
        path = raw_path.decode("ascii")
        scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = b"" if url is None else url.query or b""
        before, cycle = self.cycle, self._cycle()
        self.cycle = cycle
        scope["extensions"] = {DIRECT: {"writer": BodyWriter(cycle)}}
        self.idle_since = None
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._reported = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # the parser reports this end only because of an offer to upgrade
        self._reported = True
        self.cycle.more_body = False
        if self.cycle.response_complete:
            self._stop_waiting()
        else:
            self.cycle.message_event.set()

    def _check_head(self) -> None:
        """Raise ConnectionRefused for a head that is too large, ambiguous or of another
        protocol."""
        if len(self.headers) > MOST_HEADERS:
            raise ConnectionRefused(431, f"The request has more than {MOST_HEADERS} headers")
        size = sum(len(name) + len(value) for name, value in self.headers)
        if size > MOST_HEAD_BYTES:
            raise _too_long("head")
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            raise ConnectionRefused(505, f"This server speaks HTTP/1.1. Given: HTTP/{version}")
        if self.parser.get_method() == b"CONNECT":
            raise ConnectionRefused(
                405, "This server is no proxy", [(b"allow", b"GET, HEAD, POST, OPTIONS")]
            )
        if self.url == b"*" and self.parser.get_method() != b"OPTIONS":
            raise ConnectionRefused(400, "The URL `*` is for the method OPTIONS only")
        names = [name for name, _ in self.headers]
        if names.count(b"host") > 1:
            raise ConnectionRefused(400, "The request has more than one `Host` header")
        if b"transfer-encoding" in names:
            coding = self.headers[names.index(b"transfer-encoding")][1]
            if coding.strip().lower() != b"chunked":
                text = coding.decode("latin-1")
                raise ConnectionRefused(
                    501, f"`Transfer-Encoding` must be chunked. Given: {text!r}"
                )

    def _cycle(self) -> ReplyCycle:
        is_old = self.scope["http_version"] != "1.1"
        # Chunked replies to a client without support are framed in a way that proxies read
        # differently.
        is_odd = is_old and any(name == b"transfer-encoding" for name, _ in self.headers)
        cycle = ReplyCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            # HTTP/1.0 has no interim replies.
            expect_100_continue=self.expect_100_continue and not is_old,
            keep_alive=self.parser.should_keep_alive() and not is_odd,
            on_response=lambda: None,
        )
        cycle.on_response = partial(self._answered, cycle)
        return cycle

    # -- the end of a reply ---------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        assert isinstance(cycle, ReplyCycle)
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _answered(self, cycle: ReplyCycle) -> None:
        """Start the next request, close, or wait for the rest of this one."""
        self._running = None
        if self.transport.is_closing():
            return
        if cycle.closes or (self._deaf and not self.pipeline):
            self.pipeline.clear()
            if cycle.more_body or self._deaf:
                self._linger()
            else:
                self.transport.close()
            return
        self.on_response_complete()
        if self._is_idle():
            self.idle_since = self.loop.time()
            if cycle.more_body:
                self._wait(BODY_SECONDS, self._linger)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    # -- refusals -------------------------------------------------------------------------------

    def _reason(self, error: httptools.HttpParserError) -> ConnectionRefused:
        if isinstance(error.__context__, ConnectionRefused):
            return error.__context__
        if isinstance(error, httptools.HttpParserCallbackError):
            if not isinstance(error.__context__, httptools.HttpParserInvalidURLError):
                log.error(
                    "a request's head from %s could not be handled: it gets a 400",
                    self.client,
                    exc_info=error.__context__,
                )
            return ConnectionRefused(400, f"The URL is not valid. Given: {self.url[:100]!r}")
        return ConnectionRefused(400, f"The request is no valid HTTP/1.1: {error}")

    def _miss_head(self) -> None:
        """Give up on a head; a client that sent nothing gets no reply."""
        self._timer = None
        if self._in_head:
            reason = f"The head of the request did not arrive within {HEAD_SECONDS:g} seconds"
            self.refuse(ConnectionRefused(408, reason))
        else:
            self.transport.close()

    def refuse(self, refusal: ConnectionRefused) -> None:
        """Answer with an error and close.

        Where requests before it are still to be answered, they are, and then it closes: what came
        behind them may be another client's to a proxy, so no reply is put in between.
        """
        log.info("refused what %s sent: %s", self.client, refusal)
        self._deaf = True
        if self.pipeline:
            if self.cycle.more_body:
                self.pipeline.popleft()  # the rest of its body will not come
            return
        cycle = self._running
        if cycle is not None:
            if not cycle.more_body or cycle.response_started:
                return
            # The rest of this request's body will not come.
            cycle.disconnected = True
            cycle.message_event.set()
        if self.url == b"*" and self.parser.get_method() == b"PRI":
            self.transport.write(GOAWAY)
        else:
            path = self.url.decode("latin-1")
            self.transport.write(refusal.reply(path, self.server_state.default_headers))
        self._linger()

    def _linger(self) -> None:
        """Close once the client has closed its side, or after LINGER_SECONDS.

        Closing while it still sends would reset the connection, and it might never see the reply.
        """
        self._deaf = True
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER_SECONDS, self.transport.abort)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def make_room(connections: Iterable[object]) -> bool:
    """Close the connections that have been idle for longest. Return whether there was one."""
    idle = [
        (one.idle_since, one.transport)
        for one in connections
        if isinstance(one, Connection) and one.idle_since is not None
    ]
    idle.sort(key=lambda pair: pair[0])
    # Several at once, so that not every new client causes a search of all connections.
    for _, transport in idle[: 1 + len(idle) // 16]:
        transport.close()
    return bool(idle)


def _too_long(part: str) -> ConnectionRefused:
    return ConnectionRefused(
        431, f"The {part} of the request is longer than {MOST_HEAD_BYTES} bytes"
    )

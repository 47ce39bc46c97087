"""One request and its reply: uvicorn's cycle, with a fast path for the pieces of a stream.

An ASGI message costs a coroutine in each layer between a handler and the socket, and a handler has
to be woken to send it. Where a stream is under way and its client keeps up, neither is needed.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

CLOSE = (b"connection", b"close")
KEEP = (b"connection", b"keep-alive")


class ReplyCycle(RequestResponseCycle):
    """Frames the reply, and lets the connection decide when to close.

    HTTP/1.0 has no chunks: a reply whose length is not known ends with the connection.
    """

    closes = False
    """Whether the connection ends with this reply."""
    _until_close = False

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        """Send an ASGI message."""
        if not self.response_started:
            if message["type"] == "http.response.start":
                message = self._start(message)
        else:
            if self._until_close:
                self.expected_content_length = len(message.get("body", b""))
            if not message.get("more_body", False) and not self.keep_alive:
                # uvicorn would close at once, also while the request still arrives.
                self.keep_alive, self.closes = True, True
        return super().send(message)

    def _start(self, message: Any) -> Any:
        if self.waiting_for_100_continue and self.more_body:
            # The client may send its body all the same, or leave it out, so nothing can be read
            # after it.
            self.keep_alive = False
        is_old = self.scope["http_version"] != "1.1"
        if self.keep_alive and not is_old:
            return message
        headers = list(message.get("headers", []))
        names = [name.lower() for name, _ in headers]
        if is_old and b"content-length" not in names:
            # HEAD gets no length that it would not get otherwise.
            self._until_close, self.chunked_encoding = self.scope["method"] != "HEAD", False
            self.keep_alive = False
        if b"connection" not in names:
            headers.append(KEEP if self.keep_alive else CLOSE)
        return {**message, "headers": headers}


class BodyWriter:
    """Writes pieces of one reply's body, after its head was sent the usual way."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def keeps_up(self) -> bool:
        """Return whether a piece can be written now: the client is connected and reads what it is
        sent."""
        cycle = self._cycle
        return bool(
            cycle.chunked_encoding
            and not cycle.flow.write_paused
            and not cycle.disconnected
            and not cycle.response_complete
        )

    def write(self, piece: bytes) -> None:
        """Write a piece, which must not be empty, as a chunk."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

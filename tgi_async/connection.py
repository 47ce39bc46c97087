"""uvicorn's HTTP/1.1, and a short way for the pieces of a stream.

An ASGI message costs a coroutine in each layer between a handler and the socket, and a handler has
to be woken to send it. Where a stream is under way and its client keeps up, neither is needed.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tgi_async.api.exchange import DIRECT


class Connection(HttpToolsProtocol):
    """One client's connection. Each request's scope has a `BodyWriter` in the extension DIRECT."""

    def on_headers_complete(self) -> None:
        """uvicorn's part, which makes the cycle of this request and has it handled soon."""
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope["extensions"] = {DIRECT: {"writer": BodyWriter(self.cycle)}}


class BodyWriter:
    """Writes pieces of one reply's body, after its head was sent the usual way."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def keeps_up(self) -> bool:
        """Whether a piece can be written now: the client is there, and takes what it is sent."""
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

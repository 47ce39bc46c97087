"""Errors of HTTP that end a connection, and their replies.

These are errors of HTTP itself: there is no request yet that a route could answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tgi_async.api.error_body import error_body

GOAWAY_TEXT = b"This server speaks HTTP/1.1"
GOAWAY = (
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # an empty SETTINGS frame
    + (8 + len(GOAWAY_TEXT)).to_bytes(3, "big")
    + b"\x07\x00\x00\x00\x00\x00"
    + b"\x00\x00\x00\x00\x00\x00\x00\x0d"  # last stream 0, HTTP_1_1_REQUIRED
    + GOAWAY_TEXT
)
"""The reply to a client that starts with HTTP/2 (RFC 9113, sections 3.4 and 6.8)."""


class ConnectionRefused(Exception):
    """Ends a connection with this status; the message is for the client."""

    def __init__(self, status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = ()):
        super().__init__(message)
        self.status = status
        self.headers = list(headers)

    def reply(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return a whole reply to a request for `path`, with these headers added."""
        body = error_body(path, self.status, str(self))
        lines = [
            *headers,
            *self.headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        return b"%b%b\r\n%b" % (STATUS_LINE[self.status], head, body)

"""`--access-log`: a line for each request that was answered."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_async.api.exchange import DIRECT, Direct
from tgi_async.api.request_id import NAME

log = logging.getLogger("tgi_async.access")

PROBES = ("/", "/health", "/health/ready", "/health/live", "/ping", "/metrics")
"""Paths that load balancers and collectors ask every few seconds, and KServe's below `/v2/`."""
CLIENT_LEFT = 499
"""Logged as the status where the client left before there was one, as nginx does."""
MOST_AGENT = 256
"""Characters of a user agent that are logged."""


class AccessLog:
    """Logs each request of `app` when its reply ends: who asked what, and what came of it.

    A probe is left out as long as it succeeds. `probes` are paths that the operator chose for them.
    """

    def __init__(self, app: ASGIApp, probes: Collection[str] = ()) -> None:
        self._app = app
        self._probes = frozenset((*PROBES, *probes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(scope)

        async def counted(message: Message) -> None:
            seen.note(message)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            if seen.status != 200 or not self._is_probe(scope):
                seen.tell()

    def _is_probe(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (
            path in self._probes or (path.startswith("/v2/") and path.endswith(("/ready", "/live")))
        )


class _Seen:
    """What a line says."""

    def __init__(self, scope: Scope) -> None:
        self._began = time.monotonic()
        self.status: int | None = None
        self.n_bytes = 0
        self._ended = False
        self._request_id = ""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope.get("client")
        self._line: dict[str, Any] = {
            "method": scope["method"],
            # As it came: it has no line breaks. What is asked behind `?` may be private.
            "path": scope["raw_path"].decode("ascii"),
            "client": client[0] if client else "unix",
            "user_agent": headers.get(b"user-agent", b"").decode("latin-1")[:MOST_AGENT],
        }
        if (direct := scope.get("extensions", {}).get(DIRECT)) is not None:
            direct["writer"] = _CountedWriter(direct["writer"], self)

    def note(self, message: Message) -> None:
        """Note a part of the reply."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._request_id = dict(message["headers"]).get(NAME, b"").decode()
        elif message["type"] == "http.response.body":
            if self._line["method"] != "HEAD":
                self.n_bytes += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)

    def tell(self) -> None:
        """Log the line."""
        status = CLIENT_LEFT if self.status is None else self.status
        seconds = time.monotonic() - self._began
        fields = {
            **self._line,
            "status": status,
            "bytes": self.n_bytes,
            "duration": round(seconds, 6),
            "request_id": self._request_id,
            "complete": self._ended,
        }
        log.info(
            "%s %s %s %d %d bytes %.1f ms%s request_id=%s user_agent=%s",
            fields["client"],
            fields["method"],
            fields["path"],
            status,
            self.n_bytes,
            seconds * 1000,
            "" if self._ended else " incomplete",
            self._request_id,
            json.dumps(fields["user_agent"]),
            extra={"fields": fields},
        )


class _CountedWriter:
    """Counts what is written directly."""

    def __init__(self, writer: Direct, seen: _Seen) -> None:
        self._writer = writer
        self._seen = seen
        self.keeps_up = writer.keeps_up

    def write(self, piece: bytes) -> None:
        """Write a piece, which must not be empty."""
        self._seen.n_bytes += len(piece)
        self._writer.write(piece)

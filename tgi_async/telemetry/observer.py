"""Follow each request that generates, and report its end to the log and to the traces."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_async.telemetry import record
from tgi_async.telemetry.record import RequestRecord
from tgi_async.telemetry.traces import Traces

log = logging.getLogger(__name__)

LEVELS = {"dropped": logging.INFO, "generation": logging.ERROR, "incomplete": logging.ERROR}
"""Log levels of failures; others are the client's fault or overload, which is a warning."""


class Observer:
    """An ASGI application around the server's. `traces` None: no spans."""

    def __init__(self, app: ASGIApp, traces: Traces | None = None) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        seen = RequestRecord(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                seen.streamed = (b"content-type", b"text/event-stream") in message["headers"]
            elif seen.first_event_at is None and message.get("body", b"").startswith(b"data:"):
                seen.first_event_at = time.time_ns()
            await send(message)

        before = record.enter(seen)
        try:
            await self._app(scope, receive, watched)
        finally:
            record.leave(before)
            if seen.counted:
                self._tell(seen)

    def _tell(self, seen: RequestRecord) -> None:
        seen.ended()
        if self._traces is not None:
            self._traces.add(seen)
        extra = {"request": seen}
        if seen.succeeded:
            log.info("Success", extra=extra)
        else:
            failure = seen.failure or "generation"
            reason = f": {seen.reason}" if seen.reason else ""
            level = LEVELS.get(failure, logging.WARNING)
            log.log(level, "Failed: %s%s", failure, reason, extra=extra)

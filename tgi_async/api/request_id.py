"""`x-request-id`: the id of a request in its reply, in the log and in traces."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_async.telemetry import record

NAME = b"x-request-id"
_USABLE = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives each reply the id that its request came with, or a new one.

    Anything printable without spaces, of up to 128 characters, is an id; what is none is replaced.
    Nothing is ever looked up by it: two requests may have the same.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == NAME), b"")
        id = given if _USABLE.fullmatch(given) else f"req_{uuid.uuid4().hex}".encode()
        if (seen := record.current()) is not None:
            seen.request_id = id.decode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (NAME, id)]}
            await send(message)

        await self._app(scope, receive, named)

"""The application that answers from the first moment on, while the server starts.

While the model loads, every route says so; then the application answers, on the same connections.
Before a stop, clients are moved to other servers one reply after another. A server that takes
another one's place on the same device holds requests meanwhile, instead of refusing what the other
one would have taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_async.api.cloud.schema import Liveness
from tgi_async.api.cors import Cors
from tgi_async.api.dialect import OURS, Dialect
from tgi_async.api.encoding import encode
from tgi_async.api.error_body import error_body
from tgi_async.api.request_id import RequestIds
from tgi_async.errors import RETRY_AFTER_SECONDS

CLOSE = (b"connection", b"close")


class Gate:
    """An ASGI application in front of the server's, which `open` makes known.

    `origins` and `kserve` are the settings `cors_allow_origin` and `kserve`.
    """

    def __init__(
        self, origins: Collection[str] = (), *, kserve: bool = False, dialect: Dialect = OURS
    ) -> None:
        self._app: ASGIApp = RequestIds(Cors(self._loading, origins))
        self._kserve = kserve
        self._dialect = dialect
        self._closing = False
        self._n_held = self._most_held = 0
        self._over = asyncio.Event()
        """Set when no request is held any more."""
        self.phase("starting")

    def phase(self, name: str) -> None:
        """Set the phase that is reported until the server is ready."""
        self._phase, self._began = name, time.monotonic()

    def hold(self, most: int) -> Callable[[], None]:
        """Let up to `most` requests wait until the server is ready; health is reported as ever.

        The function that is returned ends that: those that wait get a 503, if the server is not
        ready.
        """
        self._most_held = most
        return self._over.set

    def open(self, app: ASGIApp) -> None:
        """Forward requests to `app` from now on."""
        self._app = app
        self._over.set()

    def close_connections(self) -> None:
        """Close each connection with its next reply, which says so."""
        self._closing = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._n_held < self._most_held and not self._over.is_set() and _is_held(scope):
            self._n_held += 1
            try:
                await self._over.wait()
            finally:
                self._n_held -= 1
        if not self._closing or scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), CLOSE]
            await send(message)

        await self._app(scope, receive, last)

    async def _loading(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/health/live":
            await Response()(scope, receive, send)
        elif path == "/v2/health/live" and self._kserve:
            await Response(encode(Liveness(True)), media_type="application/json")(
                scope, receive, send
            )
        else:
            seconds = round(time.monotonic() - self._began, 1)
            message = f"The server is not ready yet: {self._phase}, for {seconds:.0f} s so far"
            body = error_body(
                path if self._dialect.answers_errors_like_openai else "",
                503,
                message,
                code="loading",
                phase=self._phase,
                seconds=seconds,
            )
            headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
            reply = Response(body, 503, headers, media_type="application/json")
            await reply(scope, receive, send)


def _is_held(scope: Scope) -> bool:
    """Return whether a request may wait: those that ask how the server is want to know it now."""
    return scope["type"] == "http" and bool(scope["method"] == "POST")

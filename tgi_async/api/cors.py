"""CORS: which origins' pages may call this server."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_async.api.encoding import HeaderList

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""All methods, so that a page that uses a wrong one can read the 405."""
PREFLIGHT_SECONDS = 7200
"""How long a browser may remember an answer; Chromium caps it there."""
MOST_ASKED = 4096
"""Most characters of the list of headers in a preflight."""


class Cors:
    """An ASGI application around another one, whose replies pages of these origins may read.

    With no origins, those of any may. Preflights are answered here, so they need no API key. Every
    reply of `app` gets its headers, errors too. Credentials (cookies) are never allowed: the key is
    sent in a header.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origins) - {"*"} if "*" not in origins else frozenset()
        self._any = not self._origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if (
            origin is not None
            and scope["method"] == "OPTIONS"
            and "access-control-request-method" in headers
        ):
            await self._preflight(headers, origin)(scope, receive, send)
            return
        added = self._headers(origin)
        if not added:
            await self._app(scope, receive, send)
            return

        async def readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await self._app(scope, receive, readable)

    def _headers(self, origin: str | None) -> HeaderList:
        """Return the headers of each reply. Where origins differ, `Vary` says so to caches."""
        if self._any:
            allowed = None if origin is None else b"*"
        else:
            allowed = origin.encode("latin-1") if origin in self._origins and origin else None
        found: HeaderList = [] if self._any else [(b"vary", b"origin")]
        if allowed is not None:
            found.append((b"access-control-allow-origin", allowed))
            found.append((b"access-control-expose-headers", b"*"))
        return found

    def _preflight(self, headers: Headers, origin: str) -> Response:
        if not self._any and origin not in self._origins:
            return PlainTextResponse(
                "This origin may not call this server. --cors-allow-origin allows it.",
                status_code=400,
                headers={"vary": "origin"},
            )
        asked = headers.get("access-control-request-headers", "")
        if len(asked) > MOST_ASKED:
            return PlainTextResponse(
                f"Access-Control-Request-Headers is longer than {MOST_ASKED} characters",
                status_code=400,
            )
        allowed = {
            "vary": "origin, access-control-request-headers",
            "access-control-allow-origin": "*" if self._any else origin,
            "access-control-allow-methods": METHODS,
            "access-control-max-age": str(PREFLIGHT_SECONDS),
        }
        if asked:
            allowed["access-control-allow-headers"] = asked
        if not self._any and headers.get("access-control-request-private-network") == "true":
            # Only for origins that were named: else every page could reach a private server.
            allowed["access-control-allow-private-network"] = "true"
        return Response(headers=allowed)

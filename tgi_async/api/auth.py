"""The API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class RequireKey:
    """Lets a request through to `app` if it carries the key; otherwise an empty 401.

    The key is compared in constant time; the scheme `Bearer` in any case.
    """

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Headers are Latin-1; a key may be any text, which clients send as UTF-8.
        key = given.strip().encode("latin-1")
        if scheme.lower() == "bearer" and hmac.compare_digest(key, self._api_key):
            await self._app(scope, receive, send)
        else:
            await Response(status_code=401)(scope, receive, send)

"""The API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class RequireKey:
    """Lets a request through to `app` if it carries the key; otherwise an empty 401.

    The key is compared in constant time; the scheme `Bearer` in any case. With `any_case` the key
    may be in any case too, which is TGI's rule and makes keys easier to guess.
    """

    def __init__(self, app: ASGIApp, api_key: str, *, any_case: bool = False) -> None:
        self._app = app
        self._fold = str.lower if any_case else str
        self._api_key = self._fold(api_key).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Headers are Latin-1; a key may be any text, which clients send as UTF-8.
        raw = given.strip().encode("latin-1")
        key = self._fold(raw.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(key, self._api_key):
            await self._app(scope, receive, send)
        else:
            await Response(status_code=401)(scope, receive, send)

"""The API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tgi_async.api.error_reply import ErrorForm, as_tgi
from tgi_async.errors import Unauthorized


class RequireKey:
    """Lets a request through to `app` if it carries the key; otherwise a 401.

    The key is compared in constant time; the scheme `Bearer` in any case. With `any_case` the key
    may be in any case too, which is TGI's rule and makes keys easier to guess.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_key: str,
        *,
        any_case: bool = False,
        error_form: ErrorForm = as_tgi,
    ) -> None:
        self._app = app
        self._error_form = error_form
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
            # What was given is not shown: it may be another server's key.
            wrong = "Incorrect API key" if given else "No API key was given"
            refused = Unauthorized(f"{wrong}. Send the header `Authorization: Bearer KEY`")
            await self._error_form(refused).response()(scope, receive, send)

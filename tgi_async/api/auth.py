"""API keys: the one of the settings, and those of a file."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tgi_async.api.error_reply import ErrorForm, as_tgi
from tgi_async.errors import Unauthorized
from tgi_async.keys import ApiKey, KeyFile

KEY = "tgi_async.key"
"""Where the scope of a request has the `ApiKey` that it came with."""
OF_SETTINGS = ApiKey(name="")


class Keyring:
    """The keys with which requests are let through.

    Keys are compared in constant time. With `any_case` the one of the settings may be in any case,
    which is TGI's rule and makes keys easier to guess.
    """

    def __init__(
        self, api_key: str | None, file: KeyFile | None = None, *, any_case: bool = False
    ) -> None:
        self._fold = str.lower if any_case else str
        self._api_key = None if api_key is None else self._fold(api_key).encode()
        self._file = file

    def find(self, given: bytes) -> ApiKey | None:
        """Return the key that a client sent; None for one that is not there."""
        folded = self._fold(given.decode(errors="surrogateescape"))
        key = folded.encode(errors="surrogateescape")
        if self._api_key is not None and hmac.compare_digest(key, self._api_key):
            return OF_SETTINGS
        return self._file.find(given) if self._file is not None else None


class RequireKey:
    """Lets a request through to `app` if it carries a key; otherwise a 401.

    The scheme `Bearer` may be in any case.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, *, error_form: ErrorForm = as_tgi) -> None:
        self._app = app
        self._keys = keys
        self._error_form = error_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Headers are Latin-1; a key may be any text, which clients send as UTF-8.
        key = self._keys.find(given.strip().encode("latin-1"))
        if scheme.lower() == "bearer" and key is not None:
            scope[KEY] = key
            await self._app(scope, receive, send)
        else:
            # What was given is not shown: it may be another server's key.
            wrong = "Incorrect API key" if given else "No API key was given"
            refused = Unauthorized(f"{wrong}. Send the header `Authorization: Bearer KEY`")
            await self._error_form(refused).response()(scope, receive, send)

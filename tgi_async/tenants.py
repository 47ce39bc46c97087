"""The tenant of a request, from a header of a trusted proxy."""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tgi_async.proxies import Trusted

TENANT = "tgi_async.tenant"
"""Where the scope of a request has its tenant, if a trusted proxy named one."""
MOST_CHARACTERS = 128
_NAME = re.compile(rb"[!-~]{1,%d}" % MOST_CHARACTERS)


class Tenants:
    """Puts the tenant that a trusted proxy names in a header into the scope.

    Around what replaces the peer's address by the one that a proxy names. From others the header
    counts for nothing: whoever may name tenants has the shares of as many as he likes. A proxy that
    passes on what its clients send is no better, so two headers, or a strange one, are refused.
    """

    def __init__(self, app: ASGIApp, header: str, trusted: Trusted) -> None:
        self._app = app
        self._header = header.lower().encode()
        self._shown = header
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = scope["client"]
            given = [value for name, value in scope["headers"] if name == self._header]
            if given and self._trusted.peer(client[0] if client else None):
                if len(given) > 1 or not _NAME.fullmatch(given[0]):
                    refused = PlainTextResponse(
                        f"The header `{self._shown}` names one tenant, with 1 to "
                        f"{MOST_CHARACTERS} printable ASCII characters without spaces",
                        400,
                    )
                    await refused(scope, receive, send)
                    return
                scope[TENANT] = given[0].decode()
        await self._app(scope, receive, send)

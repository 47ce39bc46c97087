"""What a node answers that has ranks only: how it is, and that requests are the leader's."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tgi_async.api.error_body import error_body
from tgi_async.api.status import HEALTHY

READY = ("/health", "/health/ready")
LIVE = "/health/live"


class NodeStatus:
    """An ASGI application. `is_taken` says whether the leader, which is at `leader`, has taken this
    node."""

    def __init__(self, is_taken: Callable[[], bool], leader: str) -> None:
        self._is_taken = is_taken
        self._leader = leader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == LIVE:
            reply = Response()
        elif path in READY and self._is_taken():
            reply = Response(HEALTHY)
        else:
            message = (
                f"The node waits for the leader, {self._leader}"
                if path in READY
                else f"This node has a part of the model only: ask the leader, {self._leader}"
            )
            body = error_body(path, 503, message, code="node")
            reply = Response(body, 503, media_type="application/json")
        await reply(scope, receive, send)

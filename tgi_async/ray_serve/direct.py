"""The short way for the pieces of a stream to the HTTP server that Serve runs in a replica.

Serve's server is uvicorn's, with several coroutines of Serve's between it and an application, all
of which each token would pass. What is under way is written past them, as in a server of our own;
where Serve does not call the application as expected, it takes the usual way.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.types import Receive
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tgi_async.api.exchange import DIRECT
from tgi_async.reply_cycle import BodyWriter


def same_loop() -> bool:
    """Return whether Serve calls applications on the event loop of its HTTP server. On another one
    nothing may be written to its sockets."""
    try:
        from ray.serve._private import constants
    except ImportError:
        return False
    return getattr(constants, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", True) is False


def offer(scope: MutableMapping[str, Any], receive: Receive) -> None:
    """Add a writer to the scope of a request, if `receive` is Serve's, around uvicorn's."""
    cycle = getattr(getattr(receive, "_receive", None), "__self__", None)
    if isinstance(cycle, RequestResponseCycle):
        extensions = scope.get("extensions") or {}
        scope["extensions"] = {**extensions, DIRECT: {"writer": BodyWriter(cycle)}}

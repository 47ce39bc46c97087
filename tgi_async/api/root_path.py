"""`--root-path`: the server below a path of another site."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Takes the path that the server is below off requests that have it.

    A proxy may have taken it off already, and who asks the server itself does not send it, so that
    those that come without it are served too. `root_path` begins with a slash and does not end with
    one.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, root = scope["path"], self._root_path
            if path == root or path.startswith(root + "/"):
                scope["path"] = path[len(root) :] or "/"
        await self._app(scope, receive, send)

"""A Hub on loopback that speaks as much of the Hub's HTTP interface as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository, `org/model`, at one commit that the branch `main` points at."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    gated: bool = False
    """Everybody may see the list of files; only a token opens the files."""
    token: str | None = None
    """The token that opens everything; without it the repository cannot be seen, if it is set."""
    down: bool = False
    broken: str | None = None
    """A file in the middle of which the connection breaks, each time."""
    downloaded: list[str] = field(default_factory=list)
    """The files that were asked for, in that order."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self._with_body = with_body
        path = self.path.split("?")[0]
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if self.hub.down:
            self._send(503, b"down")
        elif self.hub.token is not None and not allowed and not self.hub.gated:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif match := re.fullmatch(r"/api/models/org/model(?:/revision/(.+))?", path):
            self._info(match[1] or "main")
        elif re.fullmatch(rf"/api/models/org/model/tree/{COMMIT}", path):
            self._tree()
        elif match := re.fullmatch(rf"/org/model/resolve/{COMMIT}/(.+)", path):
            if self.hub.gated and not allowed:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            else:
                self._file(match[1])
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": name} for name in self.hub.files]
        self._json({"id": "org/model", "sha": COMMIT, "siblings": siblings, "tags": []})

    def _tree(self) -> None:
        self._json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in self.hub.files.items()
            ]
        )

    def _file(self, name: str) -> None:
        content = self.hub.files[name]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}
        if not self._with_body:
            self._send(200, content, headers)
        elif name == self.hub.broken:
            self._send(200, content[:-1], headers | {"Content-Length": str(len(content))})
        else:
            self.hub.downloaded.append(name)
            self._send(200, content, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self._with_body:
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that has `files` in its one repository, until the end of the block."""
    hub = Hub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

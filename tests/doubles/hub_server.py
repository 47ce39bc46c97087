"""A Hub on loopback that speaks as much of the Hub's HTTP interface as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

LARGE = (".safetensors", ".bin", ".gguf")
"""Ends of the names of files in the large file storage."""


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
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """For each of the next answers with a file, after how many bytes its connection breaks."""
    held: str | None = None
    """A file of which half is sent; then `half_sent` is set, and nothing comes any more."""
    half_sent: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    knows_ranges: bool = True
    damaged: set[str] = field(default_factory=set)
    """Files whose last byte is another one than the Hub promises."""
    downloaded: list[str] = field(default_factory=list)
    """The files that were asked for, in that order."""
    asked: list[str] = field(default_factory=list)
    """The method and the file of each request for one."""
    sent: Counter[str] = field(default_factory=Counter)
    """The bytes sent of each file."""


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
        storage = re.fullmatch(r"/storage/(.+)", path)
        if self.hub.down:
            self._send(503, b"down")
        elif not storage and self.hub.token is not None and not allowed and not self.hub.gated:
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
        elif storage:
            if "Authorization" in self.headers:
                self._send(400, b"")
            else:
                content = self.hub.files[storage[1]]
                self._content(storage[1], content, {"ETag": '"of the storage"'})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": name} for name in self.hub.files]
        self._json({"id": "org/model", "sha": COMMIT, "siblings": siblings, "tags": []})

    def _tree(self) -> None:
        self._json([_entry(name, content) for name, content in self.hub.files.items()])

    def _file(self, name: str) -> None:
        content = self.hub.files[name]
        headers = {"X-Repo-Commit": COMMIT}
        self.hub.asked.append(f"{self.command} {name}")
        if not name.endswith(LARGE):
            self._content(name, content, headers | {"ETag": f'"{_git_id(content)}"'})
            return
        # Large files are on another host, which must not be shown the token.
        headers["X-Linked-Etag"] = f'"{_sha256(content)}"'
        headers["X-Linked-Size"] = str(len(content))
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        headers["Location"] = f"{storage}/storage/{name}?signature=x"
        self._send(302, b"", headers)

    def _content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        if not self._with_body:
            self._send(200, content, headers)
            return
        status, start = 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.hub.knows_ranges:
            status, start = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if name in self.hub.damaged:
            body = body[:-1] + bytes([body[-1] ^ 1])
        headers["Content-Length"] = str(len(body))
        if self.hub.held == name:
            body = body[: len(body) // 2]
        elif self.hub.cuts.get(name):
            body = body[: self.hub.cuts[name].pop(0)]
        self.hub.downloaded.append(name)
        self.hub.sent[name] += len(body)
        self._send(status, body, headers)
        if self.hub.held == name:
            self.hub.half_sent.set()
            self.hub.let_go.wait(60)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self._with_body:
            self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file in a listing."""
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}
    if not name.endswith(LARGE):
        return entry
    return entry | {"lfs": {"oid": _sha256(content), "size": len(content), "pointerSize": 134}}


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
        hub.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()

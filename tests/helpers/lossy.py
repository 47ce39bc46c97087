"""A client whose connections are cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message

from tgi_async.api.exchange import DIRECT


class EventReader:
    """Reads server-sent events as the standard says, and remembers the last id."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._id = self.last_id = b""
        self.payloads: list[bytes] = []
        self.retry = 0

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._read(line)

    def reconnect(self) -> None:
        """Forget what is not whole."""
        self._rest, self._data, self._id = b"", [], self.last_id

    def _read(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            self.last_id = self._id
            if self._data:
                self.payloads.append(b"\n".join(self._data))
            self._data = []
        elif name == b"data":
            self._data.append(value)
        elif name == b"id":
            self._id = value
        elif name == b"retry":
            self.retry = int(value)


class Connection:
    """One request in this process, which is cut once so many bytes of its reply came.

    `keeps_up` says for each event whether it can be written at once.
    """

    def __init__(self, most: int | None = None, keeps_up: list[bool] | None = None) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.received = b""
        self.ended = False
        self._most = most
        self._keeps_up = keeps_up or []
        self._left = asyncio.Event()

    async def ask(
        self, app: ASGIApp, path: str, body: bytes, headers: dict[str, str] | list[tuple[str, str]]
    ) -> None:
        """Send a request, and read its reply up to its end or the cut."""
        pairs = headers.items() if isinstance(headers, dict) else headers
        sent = [(name.encode(), value.encode()) for name, value in pairs]
        scope = {
            "type": "http",
            "method": "POST",
            "http_version": "1.1",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *sent],
            "client": ("10.0.0.7", 5),
            "extensions": {DIRECT: {"writer": self}},
        }
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await self._left.wait()
            return {"type": "http.disconnect"}

        await app(scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
            assert len(self.headers) == len(message["headers"]), "a header came twice"
            return
        self.write(message.get("body", b""))
        if not message.get("more_body", False) and not self._left.is_set():
            self.ended = True

    def keeps_up(self) -> bool:
        return not self._left.is_set() and (not self._keeps_up or self._keeps_up.pop(0))

    def write(self, piece: bytes) -> None:
        if self._left.is_set():
            return
        self.received += piece
        if self._most is not None and len(self.received) >= self._most:
            self.received = self.received[: self._most]
            self.leave()

    def leave(self) -> None:
        """Cut it now."""
        self._left.set()


async def continued(
    app: ASGIApp,
    path: str,
    body: dict[str, Any],
    reader: EventReader,
    *,
    most: int | None = None,
    keeps_up: list[bool] | None = None,
) -> Connection:
    """Ask for what the reader does not have, and give it what comes."""
    connection = Connection(most, keeps_up)
    headers = {"last-event-id": reader.last_id.decode()} if reader.last_id else {}
    await connection.ask(app, path, json.dumps(body).encode(), headers)
    reader.feed(connection.received)
    reader.reconnect()
    return connection

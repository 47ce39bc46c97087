"""A server under load, and one request to it with the time of each event of its answer."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

MAX_ANSWER_BYTES = 64 * 1024 * 1024
QUOTED_CHARS = 160
"""Most characters of a server's error that are shown."""
UNFINISHED = "not finished in time"


class LoadError(Exception):
    """The run cannot start or go on; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server, and which streaming route to use."""

    name: str
    host: str
    port: int
    path: str
    model: str | None
    pid: int | None

    @property
    def speaks_tgi(self) -> bool:
        return self.path.endswith("/generate_stream")

    def request(self, prompt: str, output_tokens: int) -> bytes:
        body: dict[str, Any]
        if self.speaks_tgi:
            parameters = {"max_new_tokens": output_tokens, "do_sample": False, "details": True}
            body = {"inputs": prompt, "parameters": parameters | {"ignore_eos": True}}
        else:
            body = {"prompt": prompt, "max_tokens": output_tokens, "temperature": 0.0}
            body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
            if self.model is not None:
                body["model"] = self.model
        payload = json.dumps(body).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + payload

    def read(self, event: dict[str, Any]) -> tuple[bool, int | None, int | None]:
        """Return (has it a token, prompt tokens, output tokens); the counts come with the last
        event."""
        if self.speaks_tgi:
            details = event.get("details") or {}
            counts = details.get("input_length"), details.get("generated_tokens")
            return "token" in event, *counts
        usage = event.get("usage") or {}
        return (
            bool(event.get("choices")),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
        )


class Exchange(asyncio.Protocol):
    """One request and its answer: a minimal HTTP/1.1 client that stamps server-sent events.

    Every `data:` line is one event, which holds for the servers this is made for.
    """

    def __init__(self, request: bytes) -> None:
        self.events: list[tuple[float, bytes]] = []
        """(time of arrival, payload), the payload not parsed yet."""
        self.sent_at = 0.0
        self.failure: str | None = "not started in time"
        self.begun = asyncio.Event()
        """Set when an event has come, or none will."""
        self._request = request
        self._buffer = bytearray()
        self._line = bytearray()
        self._status = 0
        self._chunked = False
        self._left: int | None = None
        self._received = 0
        self._ended: asyncio.Future[None] | None = None

    async def run(self, host: str, port: int) -> None:
        """Send the request and wait for the end of the answer; errors are kept in `failure`."""
        loop = asyncio.get_running_loop()
        self.failure = UNFINISHED
        self._ended = loop.create_future()
        self.sent_at = time.perf_counter()
        try:
            transport, _ = await loop.create_connection(lambda: self, host, port)
        except OSError as error:
            self.failure = f"no connection: {error}"
            self.begun.set()
            return
        try:
            transport.write(self._request)
            await self._ended
        finally:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._received += len(data)
        self._buffer += data
        if self._ended is None or self._ended.done():
            return
        try:
            if self._received > MAX_ANSWER_BYTES:
                raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            if self._status == 0 and not self._read_head():
                return
            body, last = self._read_chunks() if self._chunked else self._read_plain()
        except (ValueError, IndexError) as error:
            return self._end(f"not an HTTP/1.1 answer: {error}")
        self._line += body
        if self._status == 200:
            *lines, self._line = self._line.split(b"\n")
            self.events += [(now, bytes(line[5:])) for line in lines if line.startswith(b"data:")]
        if self.events:
            self.begun.set()
        if last:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        until_close = self._status != 0 and not self._chunked and self._left is None
        self._end(None if until_close and exc is None else f"connection lost: {exc or 'closed'}")

    def _end(self, failure: str | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if failure is None and self._status != 200:
            text = self._line.decode(errors="replace")[:QUOTED_CHARS]
            failure = f"status {self._status}: {text}"
        self.failure = failure
        self.begun.set()
        self._ended.set_result(None)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        status, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)
        }
        self._status = int(status.split()[1])
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if "content-length" in headers:
            self._left = int(headers["content-length"])
        del self._buffer[: end + 4]
        return True

    def _read_plain(self) -> tuple[bytes, bool]:
        body = bytes(self._buffer)
        self._buffer.clear()
        if self._left is None:
            return body, False
        self._left -= len(body)
        return body, self._left <= 0

    def _read_chunks(self) -> tuple[bytes, bool]:
        """Return the complete chunks that have arrived, and whether the last one was among them."""
        body, start, last = b"", 0, False
        while (end := self._buffer.find(b"\r\n", start)) >= 0:
            size = int(self._buffer[start:end].split(b";")[0], 16)
            if size == 0:
                last = True
                break
            after = end + 2 + size + 2
            if len(self._buffer) < after:
                break
            body += self._buffer[end + 2 : after - 2]
            start = after
        del self._buffer[:start]
        return body, last

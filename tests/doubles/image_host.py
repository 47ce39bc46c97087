"""An HTTP server on loopback that answers with what a test tells it, byte for byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    """A response, with `content_length` and others as given, by names with underscores."""
    found = {"content_length": str(len(body)), "content_type": "image/png", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in found.items() if value]
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode() + body


class ImageHost:
    """Answers each path with its bytes or its function, and then closes the connection."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Write] = {}
        self.requests: list[str] = []
        """The heads of all requests."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=tls)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End, whatever is being answered."""
        self._server.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # The streams of asyncio do not like their tasks to be cancelled.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            found = self.answers[head.split(" ")[1]]
            if callable(found):
                await found(writer)
            else:
                writer.write(found)
                await writer.drain()
        writer.close()

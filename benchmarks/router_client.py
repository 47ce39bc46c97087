"""A client that only drains bytes, for measuring the router: it counts and parses nothing.

Opens all streams at once, waits until every one has begun, and until every one has ended, and then
prints what the router's process spent between the two as one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from typing import cast

import msgspec
import uvloop

EVENT = b"data:"
END = b"0\r\n\r\n"
NAP_BUFFER_BYTES = 4096
"""Receive buffer of a slow connection: other data has to wait in the router."""


class Mark(msgspec.Struct):
    """A snapshot of all counters. CPU time is user and system, of all its threads."""

    wall_seconds: float
    cpu_seconds: float
    n_events: int
    n_bytes: int
    n_reads: int
    """Pieces in which the bytes arrived: at most as many as the router made of them."""


class Drained(msgspec.Struct):
    began: Mark
    ended: Mark
    n_held: int
    """Most streams that were open at once, each of which had begun."""
    n_failed: int
    router_rss_bytes: int
    """The router's memory when all streams had begun."""


class Streams:
    """All connections together."""

    def __init__(self, n: int, request: bytes, router: int, nap_seconds: float) -> None:
        self.request = request
        self.nap_seconds = nap_seconds
        self.n_events = self.n_bytes = self.n_reads = 0
        self.all_begun, self.all_ended = asyncio.Event(), asyncio.Event()
        self.n_held = self.n_failed = 0
        self._n, self._router = n, router
        self._n_begun = self._n_ended = 0

    def begun(self) -> None:
        self._n_begun += 1
        self.n_held = max(self.n_held, self._n_begun - self._n_ended)
        if self._n_begun == self._n:
            self.all_begun.set()

    def ended(self) -> None:
        self._n_ended += 1
        if self._n_ended == self._n:
            self.all_begun.set()
            self.all_ended.set()

    def mark(self) -> Mark:
        # The clock of another process's CPU time, as clock_getcpuclockid makes it on Linux.
        cpu = time.clock_gettime(~self._router << 3 | 2)
        return Mark(time.monotonic(), cpu, self.n_events, self.n_bytes, self.n_reads)


class Drain(asyncio.Protocol):
    """One connection."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._begun = self._ended = False
        self._tail = b""
        """The last bytes, as the end may come in two pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport, which is not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if self._streams.nap_seconds:
            self._nap()
        self._transport.write(self._streams.request)

    def data_received(self, data: bytes) -> None:
        streams = self._streams
        streams.n_reads += 1
        streams.n_bytes += len(data)
        streams.n_events += (n := data.count(EVENT))
        if n and not self._begun:
            self._begun = True
            streams.begun()
        self._tail = (self._tail + data[-len(END) :])[-len(END) :]
        if self._tail == END:
            self._ended = True
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.n_failed += not (self._begun and self._ended)
        self._streams.ended()

    def _nap(self) -> None:
        """Read for a moment, then nothing for a while, and so on."""
        if self._transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        if self._transport.is_reading() and self._begun:
            self._transport.pause_reading()
            loop.call_later(self._streams.nap_seconds, self._nap)
            return
        self._transport.resume_reading()
        loop.call_later(0.005, self._nap)


async def drain(host: str, port: int, streams: Streams, n: int, router: int) -> Drained:
    """Drain a stream. Raises OSError where nothing listens."""
    loop = asyncio.get_running_loop()
    for _ in range(n):
        connection = socket.socket()
        if streams.nap_seconds:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NAP_BUFFER_BYTES)
        connection.setblocking(False)
        await loop.sock_connect(connection, (host, port))
        await loop.create_connection(lambda: Drain(streams), sock=connection)
    await streams.all_begun.wait()
    began = streams.mark()
    rss = _rss(router)
    await streams.all_ended.wait()
    return Drained(began, streams.mark(), streams.n_held, streams.n_failed, rss)


def _rss(process: int) -> int:
    with open(f"/proc/{process}/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--router", type=int, required=True, help="its process id")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", required=True)
    parser.add_argument("--nap", type=float, default=0.0, help="seconds without reading")
    given = parser.parse_args()
    body = given.body.encode()
    request = (
        f"POST {given.path} HTTP/1.1\r\nhost: {given.host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body

    async def run() -> Drained:
        streams = Streams(given.streams, request, given.router, given.nap)
        return await drain(given.host, given.port, streams, given.streams, given.router)

    print(msgspec.json.encode(uvloop.run(run())).decode())


if __name__ == "__main__":
    main()

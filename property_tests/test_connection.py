"""However a client's bytes come, its requests are the same; and nonsense leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from tgi_async.connection import Connection

UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
REQUESTS = {
    b"GET /get HTTP/1.1\r\nHost: a\r\n\r\n": ("/get", ""),
    b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n": ("/old", ""),
    b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello": ("/length", "hello"),
    b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: z\r\n\r\n": ("/chunks", "hello"),
    b"POST /upgrade HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"Content-Length: 2\r\n\r\nhi": (
        "/upgrade",
        "hi",
    ),
    b"POST /both HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhi\r\n0\r\n\r\n": ("/both", "hi"),
}
SPLITS = st.lists(st.integers(1, 60), max_size=40)


class Wire(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Tell path and body."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            seen = json.dumps([scope["path"], body.decode()]).encode()
            headers = [(b"content-length", b"%d" % len(seen))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": seen})
            return


CONFIG = uvicorn.Config(application, lifespan="off", log_config=None, access_log=False)
CONFIG.load()


async def converse(data: bytes, splits: list[int]) -> bytes:
    """All that is answered to these bytes. Raises AssertionError if anything is left behind."""
    state, wire = ServerState(), Wire()
    connection = Connection(CONFIG, state, {})
    connection.connection_made(wire)
    start = 0
    for size in [*splits, len(data)]:
        if not wire.closed and data[start : start + size]:
            connection.data_received(data[start : start + size])
            await asyncio.sleep(0)
        start += size
    for _ in range(50):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not state.tasks
    assert not state.connections
    timers = [connection._timer, connection.timeout_keep_alive_task]
    assert timers == [None, None]
    return wire.written


@given(st.lists(st.sampled_from(list(REQUESTS)), min_size=1, max_size=6), SPLITS)
def test_requests_are_the_same_however_they_are_split(
    requests: list[bytes], splits: list[int]
) -> None:
    written = asyncio.run(converse(b"".join(requests), splits))
    replies = written.split(b"HTTP/1.1 ")[1:]
    assert [reply[:3] for reply in replies] == [b"200"] * len(requests)
    bodies = [json.loads(reply.partition(b"\r\n\r\n")[2]) for reply in replies]
    assert [tuple(body) for body in bodies] == [REQUESTS[one] for one in requests]


@given(st.data(), SPLITS)
def test_nonsense_leaves_nothing_behind(data: st.DataObject, splits: list[int]) -> None:
    given_requests = data.draw(st.lists(st.sampled_from(list(REQUESTS)), min_size=1, max_size=4))
    spoiled = bytearray(b"".join(given_requests))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(spoiled) - 1))
        spoiled[place] = data.draw(st.sampled_from(b"\r\n :;0a/*\x00\xff5"))
    asyncio.run(converse(bytes(spoiled), splits))

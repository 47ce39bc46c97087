"""Pieces of a stream that reach a client without the layers in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from tests.api.waiting import until
from tgi_async import connection
from tgi_async.api.exchange import DIRECT
from tgi_async.connection import Connection
from tgi_async.reply_cycle import BodyWriter

PIECE = b"x" * 100_000
REQUEST = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


class Application:
    """Begins a stream for each request, and lets the test go on with it."""

    def __init__(self) -> None:
        self.writers: list[BodyWriter] = []
        self._ends: list[asyncio.Event] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        self._ends.append(asyncio.Event())
        self.writers.append(scope["extensions"][DIRECT]["writer"])
        await self._ends[-1].wait()
        await send({"type": "http.response.body", "body": b"last"})

    def end(self, number: int) -> None:
        self._ends[number].set()

    def end_all(self) -> None:
        for end in self._ends:
            end.set()


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def application() -> Application:
    return Application()


@pytest.fixture
async def address(application: Application) -> AsyncIterator[tuple[str, int]]:
    config = uvicorn.Config(
        application, port=0, http=Connection, lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[:2]
    application.end_all()
    server.should_exit = True
    await serving


@pytest.fixture
async def client(address: tuple[str, int]) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address, limit=1024)
    yield reader, writer
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def ask(client: Client, application: Application, number: int = 0) -> BodyWriter:
    client[1].write(REQUEST)
    await until(lambda: len(application.writers) > number)
    return application.writers[number]


async def test_pieces_come_in_order_with_what_is_sent_the_usual_way(
    client: Client, application: Application
) -> None:
    body = await ask(client, application)
    assert body.keeps_up()
    body.write(b"second")
    application.end(0)
    assert b"transfer-encoding: chunked" in await client[0].readuntil(b"\r\n\r\n")
    whole = await client[0].readuntil(b"0\r\n\r\n")
    assert whole == b"5\r\nfirst\r\n6\r\nsecond\r\n4\r\nlast\r\n0\r\n\r\n"
    assert not body.keeps_up()


async def test_a_client_that_does_not_read_does_not_keep_up(
    client: Client, application: Application
) -> None:
    body = await ask(client, application)
    for _ in range(1000):
        if not body.keeps_up():
            return
        body.write(PIECE)
        await asyncio.sleep(0)
    pytest.fail("it still keeps up")


async def test_who_hung_up_does_not_keep_up(client: Client, application: Application) -> None:
    body = await ask(client, application)
    client[1].transport.abort()
    await until(lambda: not body.keeps_up())


async def test_each_request_of_a_connection_has_a_writer_of_its_own(
    client: Client, application: Application
) -> None:
    first = await ask(client, application)
    application.end(0)
    await client[0].readuntil(b"0\r\n\r\n")
    second = await ask(client, application, 1)
    assert (first.keeps_up(), second.keeps_up()) == (False, True)
    second.write(b"other")
    application.end(1)
    assert b"5\r\nother\r\n" in await client[0].readuntil(b"4\r\nlast\r\n0\r\n\r\n")


async def test_a_client_that_does_not_read_is_cut_off_and_others_are_not(
    client: Client,
    address: tuple[str, int],
    application: Application,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.2)
    other = await asyncio.open_connection(*address)
    slow = await ask(client, application)
    quick = await ask(other, application, 1)
    n_written = 0
    # The sockets of both sides have room for some of it.
    while slow.keeps_up():
        slow.write(PIECE)
        n_written += 1
        await asyncio.sleep(0)
    await until(lambda: slow._cycle.disconnected)
    assert n_written < 200
    quick.write(b"still here")
    application.end(1)
    read = await asyncio.wait_for(other[0].readuntil(b"0\r\n\r\n"), 10)
    assert b"still here" in read
    other[1].close()


async def test_a_client_that_reads_late_is_not_cut_off(
    client: Client, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 30.0)
    writer = await ask(client, application)
    n_written = 0
    while writer.keeps_up():
        writer.write(PIECE)
        n_written += 1
        await asyncio.sleep(0)
    connected = writer._cycle
    left = n_written * len(PIECE)
    while left > 0:
        left -= len(await asyncio.wait_for(client[0].read(1 << 20), 10))
    await until(writer.keeps_up)
    assert not connected.disconnected

"""Connections that speak TLS, and those that do not, or not soon enough."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.api.waiting import until
from tests.connection.test_bounds import NEXT, POST, Application, Client
from tests.helpers.certificates import Pair, pair
from tgi_async import handshake
from tgi_async.certificate import Certificate, CertificateFiles
from tgi_async.handshake import secured


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("c"))


class Lab:
    """A server with a certificate, and connections to it."""

    def __init__(self, server: asyncio.Server, state: ServerState, own: Pair) -> None:
        self.state, self._own = state, own
        self._address = server.sockets[0].getsockname()[:2]
        self._writers: list[asyncio.StreamWriter] = []

    async def client(self, context: ssl.SSLContext | None = None) -> Client:
        return await self._connect(ssl=context or self._own.client(), server_hostname="localhost")

    async def plain(self) -> Client:
        return await self._connect()

    async def _connect(self, **tls: Any) -> Client:
        reader, writer = await asyncio.open_connection(*self._address, **tls)
        self._writers.append(writer)
        return Client(reader, writer)

    async def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await until(lambda: not self.state.connections and not self.state.tasks)


@asynccontextmanager
async def laboratory(own: Pair, **given: Any) -> AsyncIterator[Lab]:
    options = {name: given.pop(name) for name in ("limit_concurrency",) if name in given}
    application, state = Application(), ServerState()
    config = uvicorn.Config(application, log_config=None, **options)
    config.load()
    make = secured(Certificate(CertificateFiles(*own, **given)))
    server = await asyncio.get_running_loop().create_server(
        lambda: make(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    lab = Lab(server, state, own)
    try:
        yield lab
    finally:
        application.go_on.set()
        await lab.hang_up()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def lab(own: Pair) -> AsyncIterator[Lab]:
    async with laboratory(own) as found:
        yield found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.2)


async def test_requests_follow_each_other_on_one_connection(lab: Lab) -> None:
    client = await lab.client()
    assert (await client.ask(NEXT)).seen()["path"] == "/next"
    body = b"x" * 300_000
    head = POST + b"Content-Length: %d\r\n\r\n" % len(body)
    assert (await client.ask(head + body)).seen()["body"] == body.decode()


@pytest.mark.parametrize("least", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_stream_comes_in_pieces(lab: Lab, own: Pair, least: ssl.TLSVersion) -> None:
    context = own.client()
    context.maximum_version = context.minimum_version = least
    client = await lab.client(context)
    await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"6\r\nfirst,\r\n" in await client.reader.readuntil(b"first,\r\n")


async def test_a_client_that_leaves_ends_its_request(lab: Lab) -> None:
    client = await lab.client()
    await client.send(POST + b"Content-Length: 100\r\n\r\nhalf")
    await until(lambda: bool(lab.state.tasks))
    client.writer.close()
    await until(lambda: not lab.state.tasks)


async def test_plain_http_is_told_to_speak_tls(lab: Lab) -> None:
    client = await lab.plain()
    reply = await client.ask(NEXT)
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert b"use https://" in reply.body
    client.writer.close()
    await until(lambda: not lab.state.connections)


async def test_a_first_message_may_come_in_pieces(lab: Lab) -> None:
    """A client by hand, as no library sends its first message bytewise."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    client = await lab.plain()
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sent = outgoing.read()
            await client.send(*(sent[i : i + 64] for i in range(0, len(sent), 64)))
            incoming.write(await client.reader.read(65536))
    tls.write(NEXT)
    await client.send(outgoing.read())
    received = b""
    while b"/next" not in received:
        incoming.write(await client.reader.read(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                received += tls.read(65536)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_does_not_end_is_cut(own: Pair, sent: bytes) -> None:
    async with laboratory(own) as lab:
        client = await lab.plain()
        await client.send(sent)
        assert await client.is_closed()
        await until(lambda: not lab.state.connections)


async def test_what_is_no_tls_is_cut(lab: Lab) -> None:
    client = await lab.plain()
    await client.send(b"\x16\x03\x01\x00\x05hello" * 100)
    assert await client.is_closed() or await client.is_closed()
    await until(lambda: not lab.state.connections)


async def test_too_many_handshakes_cut_the_oldest_and_clients_get_in(own: Pair) -> None:
    async with laboratory(own, limit_concurrency=16) as lab:
        silent = [await lab.plain() for _ in range(10)]
        await until(lambda: len(lab.state.connections) == 4)
        for client in silent[:6]:
            assert await client.is_closed()
        assert (await (await lab.client()).ask(NEXT)).status == 200


async def test_the_longest_idle_connection_makes_room_for_a_handshake(own: Pair) -> None:
    async with laboratory(own, limit_concurrency=4) as lab:
        clients = []
        for _ in range(5):
            clients.append(await lab.client())
            assert (await clients[-1].ask(NEXT)).status == 200
        assert await clients[0].is_closed()
        assert (await clients[1].ask(NEXT)).status == 200


async def test_a_client_has_to_show_a_certificate_where_one_is_asked_for(
    own: Pair, tmp_path: Path
) -> None:
    theirs, others = pair(tmp_path, "theirs"), pair(tmp_path, "others")
    given = {"authorities": theirs.certificate, "clients": ssl.CERT_REQUIRED}
    async with laboratory(own, **given) as lab:
        context = own.client()
        context.load_cert_chain(*theirs)
        assert (await (await lab.client(context)).ask(NEXT)).status == 200
        for shown in ((), (others,)):
            context = own.client()
            for one in shown:
                context.load_cert_chain(*one)
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await (await lab.client(context)).ask(NEXT)


async def test_a_server_that_stops_cuts_handshakes(lab: Lab) -> None:
    client = await lab.plain()
    await until(lambda: len(lab.state.connections) == 1)
    for connection in list(lab.state.connections):
        connection.shutdown()
    assert await client.is_closed()

"""What a connection makes of requests that are unusual, too large, too slow or no HTTP/1.1."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.api.waiting import until
from tgi_async import connection
from tgi_async.connection import Connection

POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SECONDS = 10.0


class Reply(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    def seen(self) -> Any:
        """What the application saw of the request."""
        assert self.status == 200, self
        return json.loads(self.body)


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next reply. Raises IncompleteReadError at the end of the connection."""
        async with asyncio.timeout(SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.rstrip("\r\n").split("\r\n")
            headers = dict(one.lower().split(": ", 1) for one in lines)
            if head_only or " 100 " in line:
                return Reply(line, headers, b"")
            if "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readline(), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readline()
            else:
                body = await self.reader.read()
            return Reply(line, headers, body)

    async def ask(self, *pieces: bytes) -> Reply:
        await self.send(*pieces)
        return await self.reply()

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0.002 if len(pieces) > 1 else 0)

    async def is_closed(self) -> bool:
        """Whether the server ends the connection, with nothing more sent on it."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


class Application:
    """Tells what it was asked; the paths /stream and /early answer in another way."""

    def __init__(self) -> None:
        self.gone = 0
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await self._answer(send, 413, b"too long")
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first,", "more_body": True})
            await self.go_on.wait()
            await send({"type": "http.response.body", "body": b"second,", "more_body": True})
            await send({"type": "http.response.body", "body": b"last"})
            return
        seen = {name: scope[name] for name in ("method", "path", "http_version")}
        seen["headers"] = [[n.decode(), v.decode("latin-1")] for n, v in scope["headers"]]
        await self._answer(send, 200, json.dumps(seen | {"body": body.decode()}).encode())

    async def _answer(self, send: Any, status: int, body: bytes) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Lab:
    """A socket with one application behind it, and connections to it."""

    def __init__(self, server: asyncio.Server, state: ServerState, application: Application):
        self.state, self.application = state, application
        self._address = server.sockets[0].getsockname()[:2]
        self._writers: list[asyncio.StreamWriter] = []

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection(*self._address)
        self._writers.append(writer)
        return Client(reader, writer)

    async def ask(self, *pieces: bytes) -> Reply:
        return await (await self.client()).ask(*pieces)

    async def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await until(lambda: not self.state.connections and not self.state.tasks)


@asynccontextmanager
async def laboratory(**options: Any) -> AsyncIterator[Lab]:
    application, state = Application(), ServerState()
    config = uvicorn.Config(application, log_config=None, **options)
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(config, state, {}), "127.0.0.1", 0
    )
    lab = Lab(server, state, application)
    try:
        yield lab
    finally:
        application.go_on.set()
        await lab.hang_up()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with laboratory() as found:
        yield found


def bytewise(text: bytes) -> list[bytes]:
    return [text[i : i + 1] for i in range(len(text))]


class TestUpgrades:
    @pytest.mark.parametrize(
        "offer",
        [
            H2C,
            b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: x\r\n",
            b"Connection: upgrade\r\nUpgrade: TLS/1.2, foo/2\r\n",
            b"Upgrade: h2c\r\n",
        ],
        ids=["h2c", "websocket", "several", "not said by Connection"],
    )
    @pytest.mark.parametrize(
        "framed",
        [b"Content-Length: 5\r\n\r\nhello", CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"],
        ids=["length", "chunks"],
    )
    async def test_are_ignored_and_the_connection_goes_on(
        self, lab: Lab, offer: bytes, framed: bytes
    ) -> None:
        client = await lab.client()
        seen = (await client.ask(POST + offer + framed + NEXT)).seen()
        assert (seen["path"], seen["body"], seen["http_version"]) == ("/x", "hello", "1.1")
        assert (await client.reply()).seen()["path"] == "/next"
        assert (await client.ask(POST + offer + framed)).seen()["body"] == "hello"

    async def test_may_come_in_pieces(self, lab: Lab) -> None:
        request = POST + H2C + b"Content-Length: 5\r\n\r\nhello" + NEXT
        client = await lab.client()
        assert (await client.ask(*bytewise(request))).seen()["body"] == "hello"
        assert (await client.reply()).seen()["path"] == "/next"

    async def test_may_follow_one_another(self, lab: Lab) -> None:
        client = await lab.client()
        await client.send(3 * (POST + H2C + b"Content-Length: 2\r\n\r\nok"))
        assert [(await client.reply()).seen()["body"] for _ in range(3)] == ["ok"] * 3

    async def test_keep_the_other_headers(self, lab: Lab) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\n" + H2C + b"X:\r\nY: z\r\n\r\n"
        assert (await lab.ask(head)).seen()["headers"][-2:] == [["x", ""], ["y", "z"]]


class TestHTTP10:
    async def test_has_a_length_and_the_connection_ends(self, lab: Lab) -> None:
        client = await lab.client()
        reply = await client.ask(b"POST /x HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
        assert reply.seen()["body"] == "hi"
        assert reply.headers["connection"] == "close"
        assert await client.is_closed()

    async def test_keeps_the_connection_where_it_is_asked_to(self, lab: Lab) -> None:
        client = await lab.client()
        for _ in range(2):
            reply = await client.ask(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert reply.seen()["path"] == "/x"
            assert reply.headers["connection"] == "keep-alive"

    async def test_has_streams_without_chunks(self, lab: Lab) -> None:
        lab.application.go_on.set()
        reply = await lab.ask(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert reply.body == b"first,second,last"
        assert reply.headers["connection"] == "close"
        assert "transfer-encoding" not in reply.headers

    async def test_with_chunks_ends_the_connection(self, lab: Lab) -> None:
        client = await lab.client()
        head = b"POST /x HTTP/1.0\r\nConnection: keep-alive\r\n" + CHUNKED
        assert (await client.ask(head + b"2\r\nhi\r\n0\r\n\r\n" + NEXT)).seen()["body"] == "hi"
        assert await client.is_closed()

    async def test_is_not_asked_for_a_body(self, lab: Lab) -> None:
        head = b"POST /x HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        assert (await lab.ask(head, b"hi")).seen()["body"] == "hi"


class TestHeads:
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2_000_000, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 2_000_000, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 66_000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 256 + b"\r\n", 431),
            (b"GET /" + b"x" * 2_000_000, 414),
            (b"GET /" + b"x" * 16_400 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
            (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\nHost: a\n\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
            (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
            (POST + b"Content-Length: +3\r\n\r\nabc", 400),
            (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
            (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
            (POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
            (POST + CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400),
            (POST + CHUNKED + b"3\nabc\n0\n\n", 400),
            (POST + CHUNKED + b"0\r\nX: " + b"x" * 2_000_000, 431),
        ],
        ids=lambda given: repr(given)[-40:],
    )
    async def test_that_cannot_be_served_say_why(
        self, lab: Lab, request_: bytes, status: int
    ) -> None:
        client = await lab.client()
        reply = await client.ask(request_)
        assert reply.status == status
        assert reply.headers["connection"] == "close"
        assert set(json.loads(reply.body)) == {"error", "error_type"}
        assert await client.is_closed()

    async def test_of_openai_routes_are_refused_in_openais_form(self, lab: Lab) -> None:
        head = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"
        error = json.loads((await lab.ask(head)).body)["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error",
            None,
            None,
        )
        assert "65536 bytes" in error["message"]

    async def test_may_be_large(self, lab: Lab) -> None:
        token = b"Authorization: Bearer " + b"x" * 40_000 + b"\r\n"
        more = b"".join(b"X-%d: y\r\n" % i for i in range(200))
        request = b"GET /" + b"y" * 16_000 + b" HTTP/1.1\r\nHost: a\r\n" + token + more + b"\r\n"
        client = await lab.client()
        for _ in range(3):
            assert len((await client.ask(request)).seen()["headers"]) == 202

    async def test_that_do_not_end_are_not_waited_for(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "HEAD_SECONDS", 0.1)
        client = await lab.client()
        await client.send(b"GET / HTTP/1.1\r\nX")
        assert (await client.reply()).status == 408
        silent = await lab.client()
        assert await silent.is_closed()
        blank = await lab.client()
        await blank.send(b"\r\n\r\n")
        assert await blank.is_closed()

    async def test_of_http_2_get_its_goodbye(self, lab: Lab) -> None:
        client = await lab.client()
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        async with asyncio.timeout(SECONDS):
            answer = await client.reader.read()
        settings, goaway = answer[:9], answer[9:]
        assert (settings[3], goaway[3]) == (4, 7)
        assert int.from_bytes(goaway[:3], "big") == len(goaway) - 9
        assert int.from_bytes(goaway[13:17], "big") == 13

    @pytest.mark.parametrize(
        ("line", "path"),
        [
            (b"OPTIONS * HTTP/1.1", "*"),
            (b"GET http://a/b?c HTTP/1.1", "/b"),
            (b"GET http://a HTTP/1.1", "/"),
            (b"GET /%61%20b HTTP/1.1", "/a b"),
        ],
    )
    async def test_have_targets_of_every_form(self, lab: Lab, line: bytes, path: str) -> None:
        assert (await lab.ask(line + b"\r\nHost: a\r\n\r\n")).seen()["path"] == path

    async def test_without_a_host_are_served(self, lab: Lab) -> None:
        assert (await lab.ask(b"GET /health HTTP/1.1\r\n\r\n")).seen()["path"] == "/health"


class TestBodies:
    async def test_are_asked_for_where_a_client_waits(self, lab: Lab) -> None:
        client = await lab.client()
        go_on = await client.ask(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert go_on.status == 100
        assert (await client.ask(b"hi")).seen()["body"] == "hi"

    async def test_that_nobody_asked_for_end_the_connection(self, lab: Lab) -> None:
        client = await lab.client()
        head = b"POST /early HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        reply = await client.ask(head)
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert await client.is_closed()

    async def test_may_come_behind_an_early_reply(self, lab: Lab) -> None:
        client = await lab.client()
        reply = await client.ask(b"POST /early HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
        assert reply.status == 413
        assert (await client.ask(b"x" * 300_000 + NEXT)).seen()["path"] == "/next"

    async def test_behind_an_early_reply_are_not_waited_for(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "BODY_SECONDS", 0.1)
        client = await lab.client()
        await client.ask(b"POST /early HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
        assert await client.is_closed()

    async def test_of_a_last_request_do_not_hide_its_reply(self, lab: Lab) -> None:
        client = await lab.client()
        head = b"POST /early HTTP/1.0\r\nContent-Length: 9000000\r\n\r\n"
        await client.send(head, *[b"x" * 100_000] * 20)
        await asyncio.sleep(0.05)
        assert (await client.reply()).body == b"too long"

    async def test_lose_their_trailers(self, lab: Lab) -> None:
        framed = CHUNKED + b"1\r\nx\r\n0\r\nAuthorization: Bearer y\r\n\r\n"
        client = await lab.client()
        seen = (await client.ask(POST + framed)).seen()
        assert "authorization" not in dict(seen["headers"])
        assert (await client.ask(NEXT)).seen()["path"] == "/next"

    async def test_that_break_off_free_their_request(self, lab: Lab) -> None:
        client = await lab.client()
        assert (await client.ask(POST + CHUNKED, b"zz\r\n")).status == 400
        await until(lambda: lab.application.gone == 1)


class TestPipelines:
    async def test_that_turn_to_nonsense_do_not_spoil_a_stream(self, lab: Lab) -> None:
        client = await lab.client()
        await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n", b"no HTTP at all\r\n\r\n")
        await asyncio.sleep(0.05)
        lab.application.go_on.set()
        assert (await client.reply()).body == b"first,second,last"
        assert await client.is_closed()

    async def test_end_with_a_request_that_closes(self, lab: Lab) -> None:
        client = await lab.client()
        closing = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        reply = await client.ask(closing + NEXT)
        assert (reply.seen()["path"], reply.headers["connection"]) == ("/x", "close")
        assert await client.is_closed()

    async def test_of_a_client_that_left_are_dropped(self, lab: Lab) -> None:
        client = await lab.client()
        await client.send(POST + b"Content-Length: 9\r\n\r\n")
        await until(lambda: len(lab.state.tasks) == 1)
        client.writer.transport.abort()
        await until(lambda: lab.application.gone == 1)
        assert not lab.state.tasks


class TestConnections:
    async def test_are_bounded_at_the_cost_of_idle_ones(self) -> None:
        async with laboratory(limit_concurrency=2) as lab:
            busy, idle = await lab.client(), await lab.client()
            await busy.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            await busy.reply(head_only=True)
            assert (await idle.ask(NEXT)).status == 200
            new = await lab.client()
            assert (await new.ask(NEXT)).status == 200
            assert await idle.is_closed()
            lab.application.go_on.set()
            assert b"last" in await busy.reader.readuntil(b"0\r\n\r\n")

    async def test_are_refused_where_all_are_busy(self) -> None:
        async with laboratory(limit_concurrency=1) as lab:
            busy = await lab.client()
            await busy.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            await busy.reply(head_only=True)
            refused = await lab.client()
            reply = await refused.reply()
            assert (reply.status, reply.headers["retry-after"]) == (503, "5")
            assert await refused.is_closed()

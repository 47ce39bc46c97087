"""Bytes that two readers of HTTP could understand in two ways.

Who is behind a proxy must see the requests that the proxy sees, no more and no less. So what is
ambiguous is refused and the connection ends, and what follows on it is no request.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.attacks.target import replies
from tests.doubles.fake_engine_run import until
from tgi_async.connection import Connection

POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SECONDS = 10.0

AMBIGUOUS: dict[str, bytes] = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END,
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a length with a sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "a length in hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "a length with an underline": POST + b"Content-Length: 3_0\r\n\r\nabc",
    "a length with a gap": POST + b"Content-Length: 3 3\r\n\r\nabc",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length beyond 64 bits": POST + b"Content-Length: 18446744073709551619\r\n\r\nabc",
    "a folded length": POST + b"Content-Length:\r\n 3\r\n\r\nabc",
    "a space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "a tab before the colon": POST + b"Content-Length\t: 3\r\n\r\nabc",
    "a space before the name": POST + b" Content-Length: 3\r\n\r\nabc",
    "a space before the first name": b"GET /x HTTP/1.1\r\n Host: a\r\n\r\n",
    "no colon": POST + b"Content-Length 3\r\n\r\nabc",
    "no name": POST + b": x\r\nContent-Length: 0\r\n\r\n",
    "NUL in a name": POST + b"Transfer-Encoding\0: chunked\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": POST + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "CR in a value": POST + b"X: a\rContent-Length: 3\r\n\r\nabc",
    "LF in a value": POST + b"X: a\nContent-Length: 3\r\n\r\nabc",
    "a control letter in a value": POST + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
    "a folded value": POST + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a head that ends with LF": POST + b"Content-Length: 0\n\n",
    "a head that ends with CR CR LF": POST + b"Content-Length: 0\r\r\n\r\n",
    "chunks twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    + END,
    "chunks in chunks": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + END,
    "no chunks, then chunks": POST
    + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n"
    + END,
    "chunks, then none": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"
    + END,
    "chunks, with a comma": POST + b"Transfer-Encoding: chunked,\r\n\r\n" + END,
    "chunks behind another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + END,
    "chunks of another name": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + END,
    "chunks in quotes": POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + END,
    "chunks with a parameter": POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n" + END,
    "chunks behind a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + END,
    "folded chunks": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + END,
    "an empty coding": POST + b"Transfer-Encoding:\r\nContent-Length: 3\r\n\r\nabc",
    "a chunk's size in 0x": CHUNKED + b"0x3\r\nabc\r\n" + END,
    "a chunk's size with a sign": CHUNKED + b"+3\r\nabc\r\n" + END,
    "a chunk's size with spaces": CHUNKED + b" 3 \r\nabc\r\n" + END,
    "a chunk's size beyond 64 bits": CHUNKED + b"10000000000000003\r\nabc\r\n" + END,
    "a chunk without a size": CHUNKED + b"\r\nabc\r\n" + END,
    "a chunk's size that ends with LF": CHUNKED + b"3\nabc\r\n" + END,
    "an extension that ends with LF": CHUNKED + b"3;a=b\nabc\r\n" + END,
    "an extension with CR": CHUNKED + b"3;a=b\rX\r\nabc\r\n" + END,
    "an extension that goes on": CHUNKED + b'3;a="\r\nabc\r\n' + END,
    "an extension with NUL": CHUNKED + b"3;a=\0\r\nabc\r\n" + END,
    "a chunk that is longer": CHUNKED + b"3\r\nabcd\r\n" + END,
    "a chunk that ends with LF": CHUNKED + b"3\r\nabc\n" + END,
    "a chunk that ends with nothing": CHUNKED + b"3\r\nabc" + END,
    "a last chunk that ends with LF": CHUNKED + b"0\n\n",
    "a trailer that ends with LF": CHUNKED + b"0\r\nX: y\n\r\n",
    "a length in a trailer": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
    "chunks in a trailer": CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an upgrade of both": POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n"
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + END,
    "an upgrade of two lengths": POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "two hosts": GET + b"Host: b\r\n\r\n",
    "a line that ends with LF": b"GET /x HTTP/1.1\nHost: a\r\n\r\n",
    "a line that ends with CR": b"GET /x HTTP/1.1\rHost: a\r\n\r\n",
    "a space behind the version": b"GET /x HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a line with tabs": b"GET\t/x\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the path": b"GET /x y HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space before the method": b" GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the path": b"GET /x\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /x\r\n",
    "a version in small letters": b"GET /x http/1.1\r\nHost: a\r\n\r\n",
    "a version with zeros": b"GET /x HTTP/01.1\r\nHost: a\r\n\r\n",
    "a path that begins nowhere": b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tunnel": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a reply": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}
"""Refused: these bytes are a request to some, and another or none to others."""

CLEAR: dict[str, tuple[bytes, str]] = {
    "a length": (POST + b"Content-Length: 3\r\n\r\nabc", "abc"),
    "a length with zeros": (POST + b"Content-Length: 003\r\n\r\nabc", "abc"),
    "a length with spaces": (POST + b"Content-Length: \t3 \r\n\r\nabc", "abc"),
    "chunks": (CHUNKED + b"3\r\nabc\r\n" + END, "abc"),
    "chunks in capitals": (POST + b"Transfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n" + END, "abc"),
    "a chunk's size with zeros": (CHUNKED + b"0000003\r\nabc\r\n" + END, "abc"),
    "a chunk's extension": (CHUNKED + b'3;a=b;c="d"\r\nabc\r\n' + END, "abc"),
    "a trailer": (CHUNKED + b"3\r\nabc\r\n0\r\nHost: b\r\nX: y\r\n\r\n", "abc"),
    "a request in a body": (
        POST + b"Content-Length: %d\r\n\r\n%b" % (len(NEXT), NEXT),
        NEXT.decode(),
    ),
    "a GET with a length": (GET + b"Content-Length: 3\r\n\r\nabc", "abc"),
    "a GET with chunks": (GET + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + END, "abc"),
    "a length under another name": (
        POST + b"Content_Length: 9\r\nContent-Length: 3\r\n\r\nabc",
        "abc",
    ),
    "a connection's own length": (
        POST + b"Connection: Content-Length\r\nContent-Length: 3\r\n\r\nabc",
        "abc",
    ),
    "a whole address": (b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    "empty lines before": (b"\r\n\r\n" + GET + b"\r\n", ""),
}
"""Served, and the next request too."""

LAST: dict[str, bytes] = {
    "close": POST + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
    "close among others": POST + b"Connection: x, Close\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.0": b"POST /x HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.0 with chunks": b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
}
"""Served, and what follows is nothing."""


class Seen(NamedTuple):
    path: str
    body: str
    through_proxy: bool


class Recorder:
    """An application that keeps what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.address: tuple[str, int] = ("", 0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        through = (b"x-seen", b"1") in scope["headers"]
        self.seen.append(Seen(scope["path"], body.decode(), through))
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask(self, request: bytes, port: int | None = None) -> list[int]:
        """The statuses of all replies until the end of the connection, and what was seen anew."""
        self.seen.clear()
        reader, writer = await asyncio.open_connection(self.address[0], port or self.address[1])
        answer = b""
        try:
            with suppress(ConnectionError):
                writer.write(request)
                async with asyncio.timeout(SECONDS):
                    while piece := await reader.read(65536):
                        answer += piece
        finally:
            writer.transport.abort()
        if answer == b"ok":
            return [200]  # nginx speaks HTTP/0.9, which has no head
        return [status for status, _, _ in replies(answer)]


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    application, state = Recorder(), ServerState()
    config = uvicorn.Config(application, log_config=None)
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(config, state, {}), "127.0.0.1", 0
    )
    application.address = server.sockets[0].getsockname()[:2]
    try:
        yield application
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await until(lambda: not state.connections and not state.tasks)
        await server.wait_closed()


@pytest.fixture
async def served() -> AsyncIterator[Recorder]:
    async with recorder() as found:
        yield found


async def test_what_is_ambiguous_is_refused_and_nothing_follows(served: Recorder) -> None:
    for name, request in AMBIGUOUS.items():
        statuses = await served.ask(request + NEXT)
        # What is wrong with a body is known when its application already waits for the rest.
        assert statuses in ([400], [501], [405]), (name, statuses)
        assert served.seen == [], (name, served.seen)


async def test_what_is_clear_is_served_and_so_is_what_follows(served: Recorder) -> None:
    for name, (request, body) in CLEAR.items():
        assert await served.ask(request + NEXT) == [200, 200], name
        assert served.seen == [Seen("/x", body, False), Seen("/next", "", False)], name


async def test_nothing_follows_the_last_request(served: Recorder) -> None:
    for name, request in LAST.items():
        assert await served.ask(request + NEXT) == [200], name
        assert served.seen == [Seen("/x", "", False)], name


async def test_what_is_ambiguous_ends_a_pipeline(served: Recorder) -> None:
    for name, request in AMBIGUOUS.items():
        assert await served.ask(GET + b"\r\n" + request + NEXT) == [200], name
        assert served.seen == [Seen("/x", "", False)], (name, served.seen)


HAPROXY = """
defaults
 mode http
 timeout connect 5s
 timeout client 2s
 timeout server 5s
 timeout http-keep-alive 2s
 http-reuse always
frontend here
 bind 127.0.0.1:{port}
 http-request set-header X-Seen 1
 default_backend there
backend there
 server one 127.0.0.1:{server}
"""
NGINX = """
pid nginx.pid; daemon off; {user}
events {{}}
http {{
 access_log off;
 client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;
 scgi_temp_path s;
 ignore_invalid_headers off; underscores_in_headers on;
 client_header_timeout 2s; client_body_timeout 2s; keepalive_timeout 2s;
 upstream there {{ server 127.0.0.1:{server}; keepalive 4; }}
 server {{
  listen 127.0.0.1:{port};
  location / {{
   proxy_pass http://there; proxy_http_version 1.1; proxy_request_buffering off;
   proxy_set_header Connection ""; proxy_set_header X-Seen 1;
  }}
 }}
}}
"""


@asynccontextmanager
async def proxy(name: str, folder: Path, server: int) -> AsyncIterator[int]:
    """The port of a proxy in front of a server's port. It marks what it passes on."""
    command = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if command is None:
        pytest.skip(f"{name} is not installed")
    free = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    config = folder / "config"
    user = "user root;" if os.geteuid() == 0 else ""
    text = HAPROXY if name == "haproxy" else NGINX
    config.write_text(text.format(port=port, server=server, user=user))
    flags = ("-db", "-f") if name == "haproxy" else ("-p", str(folder), "-e", "stderr", "-c")
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            command, *flags, str(config), stdout=log, stderr=log
        )
    try:
        for _ in range(500):
            assert process.returncode is None, (folder / "log").read_text()
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.full
@pytest.mark.parametrize("name", ["haproxy", "nginx"])
async def test_a_proxy_sees_the_same_requests(served: Recorder, tmp_path: Path, name: str) -> None:
    """Each request that arrives is one that the proxy passed on, and means the same without it."""
    n_passed = 0
    async with proxy(name, tmp_path, served.address[1]) as port:
        given = AMBIGUOUS | {key: one for key, (one, _) in CLEAR.items()} | LAST
        for case, request in given.items():
            await served.ask(request + NEXT)
            alone = [(one.path, one.body) for one in served.seen]
            statuses = await served.ask(request + NEXT, port)
            passed = [(one.path, one.body) for one in served.seen]
            assert all(one.through_proxy for one in served.seen), (case, served.seen)
            n_passed += len(passed)
            assert statuses.count(200) == len(passed), (case, statuses, passed)
            # The proxy may repair what is refused here, or refuse what is served here.
            if alone and passed:
                assert passed == alone[: len(passed)], (case, alone, passed)
    assert n_passed > 20

from __future__ import annotations

import asyncio

import pytest

from tests.doubles.image_host import answer
from tgi_async.images.addresses import Place
from tgi_async.images.exchange import PIECE, Answer, Exchange
from tgi_async.images.source import Refused

BODY = b"an image, as it came" * 100
PLACE = Place("https", "a.example", 8443, "/b?c")


class Sent(asyncio.StreamWriter):
    """A writer to nowhere."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.sent += data

    def __del__(self) -> None:
        """The real one closes its transport."""


async def exchanged(
    said: bytes, *, ended: bool = True, step: int = 1 << 20
) -> tuple[Answer, bytes, Sent]:
    reader = asyncio.StreamReader()
    for start in range(0, len(said), step):
        reader.feed_data(said[start : start + step])
    if ended:
        reader.feed_eof()
    sent = Sent()
    exchange = Exchange(reader, sent)
    found = await exchange.get(PLACE, [("user-agent", "me")])
    pieces = [piece async for piece in exchange.body()]
    assert all(len(piece) <= PIECE for piece in pieces)
    return found, b"".join(pieces), sent


async def test_one_thing_is_asked_for() -> None:
    said = answer(BODY, content_type="Image/PNG", x_twice="a\r\nx-twice: b")
    found, body, sent = await exchanged(said, ended=False)
    assert sent.sent == b"GET /b?c HTTP/1.1\r\nHost: a.example:8443\r\nuser-agent: me\r\n\r\n"
    assert (found.status, found.size, body) == (200, len(BODY), BODY)
    assert found.header("content-type") == "Image/PNG"
    assert found.header("x-twice") == "b"
    assert (found.header("none"), found.header("none", "x")) == ("", "x")


CHUNKS = b"a\r\n" + BODY[:10] + b"\r\n" + f"{len(BODY) - 10:x};x=y\r\n".encode() + BODY[10:]
CHUNKED = answer(content_length="", transfer_encoding="chunked")


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (answer(BODY), len(BODY)),
        (answer(BODY) + b"and more than it said", len(BODY)),
        (CHUNKED + CHUNKS + b"\r\n0\r\nlast: x\r\n\r\n", None),
        (answer(content_length="") + BODY, None),
        (b"HTTP/1.1 103 X\r\nlink: x\r\n\r\n" * 3 + answer(BODY), len(BODY)),
        (b"HTTP/1.0 200 X\r\n\r\n" + BODY, None),
    ],
    ids=["length", "more", "chunks", "until the end", "hints", "HTTP/1.0"],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_each_form_of_a_body_is_read(said: bytes, size: int | None, step: int) -> None:
    found, body, _ = await exchanged(said, step=step)
    assert (found.status, found.size, body) == (200, size, BODY)


@pytest.mark.parametrize(
    "said",
    [CHUNKED + b"1\r\nx\r\n" * 9000, b"HTTP/1.1 103 X\r\n\r\n" * 3000],
    ids=["chunks", "hints"],
)
async def test_others_have_their_turn_during_an_answer_of_many_parts(said: bytes) -> None:
    reading = asyncio.create_task(exchanged(said))
    n_turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        n_turns += 1
    assert isinstance(reading.exception(), Refused)
    assert n_turns > 90


async def test_what_is_in_a_header_need_not_be_text() -> None:
    found, _, _ = await exchanged(b"HTTP/1.1 302 X\r\nlocation: /\xc3\xbc\xff\r\n\r\n")
    assert found.header("location") == "/ü\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9\r\n",
        answer(BODY)[:-1],
        CHUNKED + CHUNKS,
        CHUNKED + b"zz\r\n",
        CHUNKED + b"f" * 40 + b"\r\n",
        answer(content_length="", transfer_encoding="gzip, chunked"),
        b"HTTP/1.1 200 X\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 X\r\ncontent-length: x\r\n\r\nab",
        b"HTTP/1.1 200 X\r\ncontent-length: -1\r\n\r\nab",
        b"HTTP/1.1 200 X\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\nab",
        b"HTTP/1.1 200 X\r\na: " + b"b" * 200_000,
        b"HTTP/1.1 103 X\r\n\r\n" * 9,
        b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
    ids=lambda said: repr(said[:40]),
)
async def test_what_is_no_http_is_refused_in_our_words(said: bytes) -> None:
    with pytest.raises(
        Refused,
        match=r"^Could not fetch image: its server broke off(, or did not answer in HTTP)?$",
    ):
        await exchanged(said)

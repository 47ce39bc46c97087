"""Clients that send a byte now and then, at every stage of a request, also over TLS."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.attacks.target import Target, replies, target
from tests.doubles.fake_engine_run import DEADLINE, until
from tests.helpers.certificates import pair

POST = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = b'{"inputs": "a", "parameters": {"max_new_tokens": 2}}'
FIRST = POST + b"Content-Length: %d\r\n\r\n%b" % (len(WHOLE), WHOLE)
SECONDS = 0.3
"""What a head gets, and a body."""

STAGES: dict[str, tuple[bytes, bytes, list[int]]] = {
    "nothing": (b"", b"", []),
    "empty lines": (b"", b"\r\n", []),
    "a line": (b"GE", b"", [408]),
    "a path": (b"GET /", b"a", [408]),
    "headers": (POST, b"X: y\r\n", [408]),
    "a header": (POST + b"X: ", b"y", [408]),
    "a body": (POST + b"Content-Length: 9000\r\n\r\n", b" ", [408]),
    "a body behind an offer to go on": (
        POST + b"Expect: 100-continue\r\nContent-Length: 9000\r\n\r\n",
        b" ",
        [100, 408],
    ),
    "chunks": (CHUNKED, b"1\r\n \r\n", [408]),
    "a chunk": (CHUNKED + b"fff\r\n", b" ", [408]),
    "a chunk's size": (CHUNKED, b"0", [408]),
    "a chunk's extension": (CHUNKED + b"1;", b"a", [408]),
    "a trailer": (CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(WHOLE), WHOLE), b"X: y\r\n", [408]),
    "a second head": (FIRST + b"GET / HTTP/1.1\r\n", b"X: y\r\n", [200, 408]),
    "a second body": (FIRST + POST + b"Content-Length: 9000\r\n\r\n", b" ", [200, 408]),
    "the body of an early reply": (
        b"POST /generate HTTP/1.1\r\nContent-Length: 900\r\n\r\n",
        b" ",
        [415],
    ),
}
"""What is sent at once, what is sent again and again, and the statuses of the replies."""


async def dribble(server: Target, first: bytes, drop: bytes) -> bytes:
    """All that is answered until the server ends the connection."""
    reader, writer = await server.connect()

    async def drip() -> None:
        with suppress(ConnectionError):
            writer.write(first)
            while drop:
                writer.write(drop)
                await asyncio.sleep(SECONDS / 6)

    dripping = asyncio.create_task(drip())
    answer = b""
    try:
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionError):
                while piece := await reader.read(65536):
                    answer += piece
        return answer
    finally:
        dripping.cancel()
        writer.transport.abort()


@pytest.mark.parametrize(
    "tls", [pytest.param(False, marks=pytest.mark.full), True], ids=["plain", "TLS"]
)
async def test_who_is_slow_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    own = pair(tmp_path) if tls else None
    async with target(tmp_path, monkeypatch, seconds=SECONDS, own=own) as server:
        answers = await asyncio.gather(
            *(dribble(server, first, drop) for first, drop, _ in STAGES.values())
        )
        found = {
            stage: [status for status, _, _ in replies(answer)]
            for stage, answer in zip(STAGES, answers, strict=True)
        }
        assert found == {stage: statuses for stage, (_, _, statuses) in STAGES.items()}
        await until(lambda: not server.state.connections and not server.state.tasks)
        assert not server.errors.found

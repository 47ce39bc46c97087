"""Methods, paths and headers that clients choose are no names of anything the server keeps."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.attacks.target import Target, replies, target

METHODS = (b"GET", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"PROPFIND", b"M-SEARCH", b"QUERY")


async def pipelined(server: Target, requests: list[bytes]) -> list[int]:
    """The statuses of requests on one connection, the last of which closes it."""
    last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    return [status for status, _, _ in replies(await server.send(b"".join(requests) + last))]


async def metrics_of(server: Target) -> set[str]:
    """The names and labels of all metrics."""
    ((_, _, text),) = replies(await server.send(b"GET /metrics HTTP/1.0\r\n\r\n"))
    return {line.rpartition(" ")[0] for line in text.decode().splitlines()}


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.full)])
async def test_odd_methods_and_paths_add_nothing_to_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """PYSEC-2026-4325: each method became a label."""
    random = Random(1)
    async with target(tmp_path, monkeypatch) as server:
        before = await metrics_of(server)
        for start in range(0, n, 100):
            requests = [
                random.choice(METHODS)
                + b" /%x/%x?%x HTTP/1.1\r\nHost: a%x\r\nX-%x: y\r\nUser-Agent: %x\r\n\r\n"
                % tuple(random.getrandbits(40) for _ in range(6))
                for _ in range(start, start + 100)
            ]
            statuses = await pipelined(server, requests)
            assert statuses == [404] * 100 + [200]
        assert await metrics_of(server) == before


async def test_fields_that_nobody_knows_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with target(tmp_path, monkeypatch) as server:
        found = []
        for letter in (b"x", b"y"):
            names = b",".join(b'"%b%d\\n\\u001b[31m": 1' % (letter, i) for i in range(300))
            content = b'{"inputs": "a", "parameters": {"max_new_tokens": 1}, %b}' % names
            head = (
                b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(content)
            )
            ((status, reply_head, _),) = replies(await server.send(head + content))
            assert status == 200
            assert len(reply_head) < 3000
            assert b"\x1b" not in reply_head
            found.append(await metrics_of(server))
        assert found[0] == found[1]
        assert not server.errors.found


@pytest.mark.full
@pytest.mark.parametrize("n", [256, 200_000])
async def test_headers_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    async with target(tmp_path, monkeypatch) as server:
        head = b"GET /health HTTP/1.1\r\n" + b"a:\r\n" * (n + 1) + b"\r\n"
        assert [status for status, _, _ in replies(await server.send(head))] == [431]


async def test_what_a_request_is_called_reaches_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-112266: an id that a client chose, or its beginning, ended others' requests."""
    async with target(tmp_path, monkeypatch) as server:
        content = b'{"inputs": "a", "parameters": {"max_new_tokens": 40}}'
        ids = [b"a", b"a", b"ab", b"", b"a b", b"\xff", b"x" * 128, b"x" * 129, b"../a", b"*"]
        requests = [
            b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"X-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (one, len(content), content)
            for one in ids
        ]
        assert await pipelined(server, requests) == [200] * 11
        assert not server.errors.found

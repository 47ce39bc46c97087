"""Spoiled requests, against the whole router: no error of the server's own, none that another
client notices."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
from pathlib import Path
from random import Random

import pytest

from tests.attacks.corpus import READ, VALID
from tests.attacks.mutations import mutated, resumed
from tests.attacks.target import WITNESS, Target, replies, target

AT_ONCE = 16
NOT_OURS = {501, 505}
"""Statuses from 500 on that are about the request: a transfer coding and a version of HTTP."""
LATE = {503, 504}
"""Statuses of a request whose own time was over."""
INTERNAL = b"nternal server error"


async def witness(server: Target) -> bytes:
    content = json.dumps(WITNESS).encode()
    head = (
        b"POST /generate_stream HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content)
    )
    for _ in range(5):
        found = replies(await server.send(head + content))
        # This process may have stood still for so long that its request seemed to be slow.
        if found and found[0][0] != 408:
            break
    ((status, _, text),) = found
    assert status == 200
    return re.sub(rb"\nid: .*", b"", text)  # each stream has ids of its own


async def attack(server: Target, n: int, seed: int) -> dict[int, int]:
    """Send `n` requests, and return how many replies had each status."""
    random = Random(seed)
    counts: dict[int, int] = {}
    undisturbed = await witness(server)
    left = n
    in_flight: dict[int, bytes] = {}

    async def one_after_another(place: int) -> None:
        nonlocal left
        again = b""
        while left > 0:
            left -= 1
            request = in_flight[place] = again or mutated(random)
            again = b""
            try:
                answers = replies(await server.send(request))
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(f"{error!r} to {request!r}") from error
            for status, head, text in answers:
                counts[status] = counts.get(status, 0) + 1
                late = status in LATE and b"X-Request-Timeout" in request
                assert status < 500 or status in NOT_OURS or late, (status, text[:300], request)
                assert INTERNAL not in text, (text[:300], request)
                assert head.count(b"\r\ncontent-length:") <= 1
                if b"\nid: " in text:
                    again = resumed(random, request, text)
            assert not server.errors.found, (server.errors.found, list(in_flight.values()))

    async def watch() -> None:
        while left > 0:
            assert await witness(server) == undisturbed

    async with asyncio.TaskGroup() as group:
        for place in range(AT_ONCE):
            group.create_task(one_after_another(place))
        group.create_task(watch())
    assert await witness(server) == undisturbed
    return counts


def memory() -> int:
    """Kilobytes that are resident."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


async def check_corpus(server: Target) -> None:
    """What is spoiled is valid before, and of every route."""
    for sent in VALID:
        content = sent.content()
        head = (
            f"POST {sent.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        ((status, _, text),) = replies(await server.send(head.encode() + content))
        assert (status, b'"error"' in text) == (200, False), (sent, text)
    document = await server.send(b"GET /api-doc/openapi.json HTTP/1.0\r\n\r\n")
    ((_, _, text),) = replies(document)
    paths = json.loads(text)["paths"]
    posted = {sent.path for sent in VALID}
    lacking = {path for path in paths if "post" in paths[path]} - posted
    assert lacking == {"/v2/models/{model}/versions/{version}/infer"}
    assert len([path for path in paths if "get" in paths[path]]) <= len(READ)


async def test_a_thousand_spoiled_requests_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with target(tmp_path, monkeypatch) as server:
        await check_corpus(server)
        counts = await attack(server, 1000, 1)
    assert min(counts.get(status, 0) for status in (200, 400, 422)) > 50, counts


@pytest.mark.soak
@pytest.mark.timeout(36000)
async def test_a_hundred_thousand_spoiled_requests_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, n = int(os.environ.get("ATTACK_SEED", "2")), int(os.environ.get("ATTACKS", "100000"))
    async with target(tmp_path, monkeypatch) as server:
        sizes = []
        for part in range(10):
            counts = await attack(server, n // 10, seed * 1000 + part)
            sizes.append(memory())
            print(part, counts, sizes[-1], resource.getrusage(resource.RUSAGE_SELF).ru_utime)
        assert sizes[-1] < sizes[2] * 1.1 + 5000, sizes

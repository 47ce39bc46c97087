"""Grammars that mean harm cost their senders a 422, and nobody else a token."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from itertools import pairwise

import httpx
import pytest

from benchmarks.grammar_texts import benign, hostile
from tests.integration.server import Server, generate
from tests.integration.test_disconnects import gauges, until_all_is_free

pytestmark = pytest.mark.model

MANY = int(os.environ.get("HOSTILE_GRAMMARS", "5000"))
PER_SECOND = float(os.environ.get("HOSTILE_PER_SECOND", "2"))
ASKED = ("The sea is", {"max_new_tokens": 24})
SURROGATES = (
    b'{"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "\xff\xfe"}}}',
    b'{"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "\\ud800"}}}',
    b'{"inputs": "a", "parameters": {"grammar": {"type": "json", "value": {"const": "\\udfff"}}}}',
    b'{"inputs": "a", "parameters": {"grammar": {"type": "json", "value": "{\\"type\\":"}}}',
)


async def attack(server: Server, n: int, per_second: float) -> None:
    """Send so many, in time whatever becomes of those before."""
    draw = random.Random(n)

    async def one(client: httpx.AsyncClient) -> None:
        if draw.random() < 0.1:
            headers = {"content-type": "application/json"}
            content = draw.choice(SURROGATES)
            reply = await client.post("/generate", content=content, headers=headers)
        else:
            parameters = {"max_new_tokens": 8, "grammar": hostile(draw)}
            reply = await client.post("/generate", json={"inputs": "a", "parameters": parameters})
        # Refused, answered, given up in the middle, or sent away while too many are being checked.
        assert reply.status_code in (200, 400, 422, 424, 429, 503), reply.text

    async with server.client() as client, asyncio.TaskGroup() as group:
        for _ in range(n):
            group.create_task(one(client))
            await asyncio.sleep(1 / per_second)


async def listen(server: Server, until: asyncio.Event, expected: str) -> list[float]:
    """Ask again and again; the seconds between one answer and the next."""
    times = [time.monotonic()]
    async with server.client() as client:
        while not until.is_set():
            assert (await generate(client, *ASKED)).text == expected
            times.append(time.monotonic())
    return [later - earlier for earlier, later in pairwise(times)]


async def under_attack(server: Server, n: int, per_second: float) -> float:
    """Seconds of the slowest answer to others meanwhile."""
    async with server.client() as client:
        expected = (await generate(client, *ASKED)).text
        restarts = (await gauges(client))["tgi_async_worker_restarts"]
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        listeners = [group.create_task(listen(server, ended, expected)) for _ in range(2)]
        await attack(server, n, per_second)
        ended.set()
    await until_all_is_free(server)
    async with server.client() as client:
        grammar = benign(random.Random(n))
        json.loads((await generate(client, "a", {"grammar": grammar, "max_new_tokens": 300})).text)
        assert (await gauges(client))["tgi_async_worker_restarts"] == restarts
    return max(max(task.result()) for task in listeners)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("n", [40, pytest.param(100, marks=pytest.mark.full)])
async def test_some_of_them(server: Server, report: list[str], n: int) -> None:
    slowest = await under_attack(server, n, per_second=8.0)
    report.append(f"{n} hostile grammars: the slowest of other answers took {slowest:.2f} s")


@pytest.mark.soak
@pytest.mark.timeout(MANY + 1200)
async def test_thousands_of_them(server: Server, report: list[str]) -> None:
    slowest = await under_attack(server, MANY, PER_SECOND)
    report.append(f"{MANY} hostile grammars: the slowest of other answers took {slowest:.2f} s")

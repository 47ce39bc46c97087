"""Hours of mixed traffic with everything that can go wrong, and nothing that adds up.

`SOAK_SECONDS` (default two hours) says how long.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from tests.integration.server import Server, generate
from tests.integration.test_disconnects import gauges, leave, until_all_is_free

pytestmark = [pytest.mark.model, pytest.mark.soak]

SECONDS = float(os.environ.get("SOAK_SECONDS", "7200"))
MEMORY_GROWTH = 100 * 2**20
"""What the router may take more at the end than after its first minute."""
ASKED = ("The sea is", {"max_new_tokens": 24})


def resident(pid: int) -> int:
    """Bytes of memory that are this process's own share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


async def ask(server: Server, deadline: float, expected: str) -> int:
    """Ask the same question again and again; returns how often it was answered."""
    n_answers = 0
    async with server.client() as client:
        while time.monotonic() < deadline:
            assert (await generate(client, *ASKED)).text == expected
            n_answers += 1
    return n_answers


async def come_and_go(server: Server, deadline: float, seed: int) -> None:
    at_once = asyncio.Semaphore(1)
    while time.monotonic() < deadline:
        await leave(server, seed, at_once)
        seed += 1000


async def send_rubbish(server: Server, deadline: float) -> None:
    draw = random.Random(0)
    async with server.client() as client:
        while time.monotonic() < deadline:
            body = draw.randbytes(draw.randrange(2000))
            reply = await client.post(
                "/generate", content=body, headers={"content-type": "application/json"}
            )
            assert 400 <= reply.status_code < 500
            await asyncio.sleep(0.2)


async def kill_workers(server: Server, deadline: float) -> None:
    while time.monotonic() + 60 < deadline:
        await asyncio.sleep(45)
        server.kill_worker()


@pytest.mark.timeout(SECONDS + 600)
async def test_nothing_adds_up(server: Server, report: list[str]) -> None:
    async with server.client() as client:
        expected = (await generate(client, *ASKED)).text
    deadline = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(ask(server, deadline, expected)) for _ in range(4)]
        for seed in range(4):
            group.create_task(come_and_go(server, deadline, seed))
        group.create_task(send_rubbish(server, deadline))
        group.create_task(kill_workers(server, deadline))
        await asyncio.sleep(min(60.0, SECONDS / 4))
        at_first = resident(server.pid)

    await until_all_is_free(server)
    grown = resident(server.pid) - at_first
    n_answers = sum(task.result() for task in answers)
    async with server.client() as client:
        restarts = (await gauges(client))["tgi_async_worker_restarts"]
        healthy = (await client.get("/health")).is_success
    report.append(
        f"soak of {SECONDS:.0f} s: {n_answers} answers, {restarts:.0f} worker deaths, the router "
        f"grew by {grown / 2**20:.1f} MB"
    )
    assert n_answers > 0
    assert grown < MEMORY_GROWTH
    assert healthy

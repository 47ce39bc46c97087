"""SIGKILL or SIGSTOP to the worker: a pause for its clients, then the rest of the same text."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.server import Reply, Server, stream
from tests.integration.waiting import until
from tgi_async.deadline import IDLE_SECONDS

pytestmark = pytest.mark.model

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}
ENDLESS = {"type": "regex", "value": "([a-z]{2,9} ){600}"}
N_TOKENS = 32
STREAMS: list[tuple[str, dict[str, Any]]] = [
    (
        f"{text} {i}",
        {"max_new_tokens": N_TOKENS, "ignore_eos": True}
        | ({**SAMPLED, "seed": i} if i % 2 else {})
        | ({"grammar": ENDLESS} if i % 4 > 1 else {}),
    )
    for i, text in enumerate(
        ("Once upon a time", "def main():", "서울은 한국의", "The speed of light") * 3
    )
]
"""Twelve, every second one greedy, the others seeded; half of each follow a grammar."""


async def run_all(
    server: Server, harm: Callable[[], None] = lambda: None, at: tuple[int, ...] = ()
) -> list[Reply]:
    """All streams together; `harm` is done when so many tokens have been sent in all."""
    n_sent = 0
    remaining = list(at)

    def on_token() -> None:
        nonlocal n_sent
        n_sent += 1
        if remaining and n_sent >= remaining[0]:
            remaining.pop(0)
            harm()

    async with server.client() as client, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream(client, inputs, parameters, on_token))
            for inputs, parameters in STREAMS
        ]
    assert not remaining
    return [task.result() for task in tasks]


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[Reply]:
    replies = asyncio.run(run_all(server))
    assert all(len(reply.tokens) == N_TOKENS for reply in replies)
    return replies


async def test_streams_end_with_the_text_of_an_undisturbed_run(
    server: Server, undisturbed: list[Reply]
) -> None:
    restarts = server.gauges()["tgi_async_worker_restarts"]
    assert await run_all(server, server.kill_worker, at=(60, 200)) == undisturbed
    assert server.gauges()["tgi_async_worker_restarts"] == restarts + 2


@pytest.mark.full
async def test_a_worker_that_is_stopped_is_replaced_within_seconds(
    server: Server, undisturbed: list[Reply]
) -> None:
    restarts = server.gauges()["tgi_async_worker_restarts"]
    stopped_at = found_at = 0.0

    def stop() -> None:
        nonlocal stopped_at
        server.signal_worker(signal.SIGSTOP)
        stopped_at = time.monotonic()

    async with server.client() as client:

        async def health(status: int) -> bool:
            return (await client.get("/health")).status_code == status

        serving = asyncio.create_task(run_all(server, stop, at=(140,)))
        await until(lambda: health(503))
        found_at = time.monotonic()
        await until(lambda: health(200))
        assert await serving == undisturbed

    # The machine that runs this may be busy, and its steps slow.
    assert 0 < stopped_at < found_at < stopped_at + 10 * IDLE_SECONDS
    assert server.gauges()["tgi_async_worker_restarts"] == restarts + 1
    assert "gave no result" in server.log


@pytest.mark.full
async def test_a_worker_that_stands_by_takes_over(
    model_folder: Path, tmp_path: Path, undisturbed: list[Reply]
) -> None:
    with Server.running(tmp_path / "log", "--standby", "--dtype", "float32") as server:

        async def loaded() -> bool:
            return server.log.count("a standby worker is loaded") == 1

        await until(loaded)
        assert await run_all(server, server.kill_worker, at=(60,)) == undisturbed
        assert server.log.count("the standby worker takes over") == 1


async def test_a_request_that_comes_while_the_worker_is_away_waits_for_it(server: Server) -> None:
    """Health says 503 meanwhile."""
    seen: list[httpx.Response] = []

    async with server.client() as client:

        async def health(status: int) -> bool:
            seen.append(await client.get("/health"))
            return seen[-1].status_code == status

        before = await stream(client, *STREAMS[0])
        server.kill_worker()
        waiting = asyncio.create_task(stream(client, *STREAMS[0]))
        await until(lambda: health(503))
        away = seen[-1]
        await until(lambda: health(200))
        assert await waiting == before

    assert {reply.status_code for reply in seen} == {200, 503}
    assert away.json() == {"error": "unhealthy", "error_type": "healthcheck"}
    assert "retry-after" in away.headers

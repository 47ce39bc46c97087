"""SIGKILL to the worker: a pause for its clients, then the rest of the same text."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.integration.server import Reply, Server, stream
from tests.integration.waiting import until

pytestmark = pytest.mark.model

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}
ENDLESS = {"type": "regex", "value": "([a-z]{2,9} ){600}"}
STREAMS: list[tuple[str, dict[str, Any]]] = [
    (
        f"{text} {i}",
        {"max_new_tokens": 48, "ignore_eos": True}
        | ({**SAMPLED, "seed": i} if i % 2 else {})
        | ({"grammar": ENDLESS} if i % 4 > 1 else {}),
    )
    for i, text in enumerate(
        ("Once upon a time", "def main():", "서울은 한국의", "The speed of light") * 3
    )
]
"""Twelve, every second one greedy, the others seeded; half of each follow a grammar."""


async def run_all(server: Server, deaths_at: tuple[int, ...] = ()) -> list[Reply]:
    """All streams together; the worker is killed when so many tokens have been sent in all."""
    n_sent = 0
    remaining = list(deaths_at)

    def on_token() -> None:
        nonlocal n_sent
        n_sent += 1
        if remaining and n_sent >= remaining[0]:
            remaining.pop(0)
            server.kill_worker()

    async with server.client() as client, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream(client, inputs, parameters, on_token))
            for inputs, parameters in STREAMS
        ]
    assert not remaining
    return [task.result() for task in tasks]


async def test_streams_end_with_the_text_of_an_undisturbed_run(server: Server) -> None:
    undisturbed = await run_all(server)
    restarts = server.gauges()["tgi_async_worker_restarts"]

    disturbed = await run_all(server, deaths_at=(100, 300))

    assert disturbed == undisturbed
    assert all(len(reply.tokens) == 48 for reply in disturbed)
    assert server.gauges()["tgi_async_worker_restarts"] == restarts + 2


async def test_a_request_that_comes_while_the_worker_is_away_is_served(server: Server) -> None:
    async with server.client() as client:
        before = await stream(client, *STREAMS[0])
        server.kill_worker()
        assert await stream(client, *STREAMS[0]) == before


async def test_health_says_503_until_the_worker_is_back(server: Server) -> None:
    seen: list[httpx.Response] = []

    async with server.client() as client:

        async def health(status: int) -> bool:
            seen.append(await client.get("/health"))
            return seen[-1].status_code == status

        server.kill_worker()
        await until(lambda: health(503))
        away = seen[-1]
        await until(lambda: health(200))

    assert {reply.status_code for reply in seen} == {200, 503}
    assert away.json() == {"error": "unhealthy", "error_type": "healthcheck"}
    assert "retry-after" in away.headers

"""What clients and operators see over HTTP while workers die, of a whole server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.doubles.fake_engine_run import DEADLINE
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour, expected_tokens
from tests.integration.server import Server

N_TOKENS = 30
PROMPTS = [f"stream {i}" for i in range(12)]
POISON = 3


@contextmanager
def serving(
    tmp_path: Path, behaviour: Behaviour, *flags: str, prepare: str = ""
) -> Iterator[FakeServer]:
    """A server over fake workers; at the end it stops in order, and leaves nothing."""
    server = FakeServer(tmp_path, behaviour, *flags, prepare=prepare)
    try:
        yield server
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
        assert server.ended() == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def client_of(server: FakeServer) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=server.url, timeout=2 * DEADLINE, limits=limits)


def due(server: FakeServer, prompt: str, n: int = N_TOKENS) -> list[int]:
    return expected_tokens(server.behaviour, tiny_tokenizer().encode(prompt), n)


async def read(
    client: httpx.AsyncClient,
    prompt: str | list[int],
    n: int = N_TOKENS,
    on_token: Callable[[], None] = lambda: None,
) -> list[int]:
    """The tokens of a stream. Raises LookupError for an error in it, with the event."""
    body: dict[str, Any] = {"inputs": prompt, "parameters": {"max_new_tokens": n}}
    tokens: list[int] = []
    async with client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                if "error" in event:
                    raise LookupError(event)
                tokens.append(event["token"]["id"])
                on_token()
    return tokens


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    return Server.parse(await client.get("/metrics"))[name]


async def test_two_deaths_in_a_row_and_one_in_the_replay(tmp_path: Path) -> None:
    """Worker 1 dies among all streams, 2 while it loads, 3 in its first step, 4 in mid-replay."""
    behaviour = Behaviour(n_blocks=400, die_at={1: 12, 3: 1, 4: 5}, die_loading=[2])
    with serving(tmp_path, behaviour) as server:
        async with client_of(server) as client:
            found = await asyncio.gather(*(read(client, one) for one in PROMPTS))
            assert found == [due(server, one) for one in PROMPTS]
            assert await gauge(client, "tgi_async_worker_restarts") == 3
            assert (await client.get("/health")).status_code == 200
        assert "1 requests will be replayed" not in server.log
        assert f"{len(PROMPTS)} requests will be replayed" in server.log


async def test_memory_pressure_and_deaths(tmp_path: Path) -> None:
    """A cache that holds two of the texts, so that requests are preempted all the time."""
    behaviour = Behaviour(n_blocks=24, die_at={1: 20, 2: 9, 3: 14})
    with serving(tmp_path, behaviour) as server:
        async with client_of(server) as client:
            found = await asyncio.gather(*(read(client, one) for one in PROMPTS))
            assert found == [due(server, one) for one in PROMPTS]
            assert await gauge(client, "tgi_async_worker_restarts") == 3
            assert await gauge(client, "tgi_async_used_blocks") == 0


async def test_a_restart_as_clients_see_it(tmp_path: Path) -> None:
    """Health is 503 and says when to come again, who comes waits and is served, and who leaves
    leaves nothing."""
    behaviour = Behaviour(n_blocks=400, die_at={1: 8}, load_seconds=1.0)
    with serving(tmp_path, behaviour) as server:
        async with client_of(server) as client:
            staying = asyncio.create_task(read(client, "stays"))
            leaving = asyncio.create_task(read(client, "leaves", 200))

            async def away() -> bool:
                return (await client.get("/health")).status_code == 503

            await until(away)
            health = await client.get("/health")
            if health.status_code == 503:  # or the machine was busy for that long
                assert int(health.headers["retry-after"]) >= 1
            assert (await client.get("/health/live")).status_code == 200
            coming = asyncio.create_task(read(client, "comes"))
            leaving.cancel()
            assert await coming == due(server, "comes")
            assert (await client.get("/health")).status_code == 200
            assert await staying == due(server, "stays")
            assert await gauge(client, "tgi_async_worker_restarts") == 1

            async def free() -> bool:
                names = ("tgi_batch_current_size", "tgi_queue_size", "tgi_async_used_blocks")
                return not any([await gauge(client, name) for name in names])

            await until(free)


async def test_a_death_while_the_server_drains(tmp_path: Path) -> None:
    behaviour = Behaviour(n_blocks=400, step_seconds=0.02)
    flags = ("--graceful-termination-timeout", "60")
    with serving(tmp_path, behaviour, *flags) as server:
        async with client_of(server) as client:
            n_tokens = 0

            def on_token() -> None:
                nonlocal n_tokens
                n_tokens += 1
                if n_tokens == 60:
                    server.signal(signal.SIGTERM)
                if n_tokens == 100:
                    os.kill(server.worker_pids[0], signal.SIGKILL)

            reading = [read(client, one, on_token=on_token) for one in PROMPTS]
            assert await asyncio.gather(*reading) == [due(server, one) for one in PROMPTS]
        assert len(server.worker_pids) == 2


async def test_poison_is_an_error_of_its_own_stream(tmp_path: Path) -> None:
    poison = tiny_tokenizer().decode([POISON])
    behaviour = Behaviour(n_blocks=400, die_on=POISON)
    with serving(tmp_path, behaviour) as server:
        async with client_of(server) as client:
            reading = asyncio.gather(*(read(client, one) for one in PROMPTS))
            body = {"inputs": f"x{poison}", "parameters": {"max_new_tokens": 5}}
            found = await client.post("/generate", json=body)
            assert found.status_code == 424
            assert "SIGKILL" in found.json()["error"]
            with pytest.raises(LookupError, match="generation"):
                await read(client, f"y{poison}")
            assert await reading == [due(server, one) for one in PROMPTS]


@pytest.mark.full
async def test_a_worker_that_is_stopped_is_not_reported_healthy_for_long(tmp_path: Path) -> None:
    behaviour = Behaviour(n_blocks=400, step_seconds=0.01)
    with serving(tmp_path, behaviour) as server:
        async with client_of(server) as client:
            reading = asyncio.create_task(read(client, "long", 100))

            async def begun() -> bool:
                return await gauge(client, "tgi_batch_current_size") > 0

            await until(begun)
            os.kill(server.worker_pids[0], signal.SIGSTOP)
            began = time.monotonic()

            async def replaced() -> bool:
                return await gauge(client, "tgi_async_worker_restarts") == 1

            await until(replaced)
            assert time.monotonic() - began < DEADLINE
            assert await reading == due(server, "long", 100)

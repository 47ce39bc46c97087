"""Clients that go away, at whatever moment: nothing of them stays, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import httpx
import pytest

from tests.integration.conftest import CONCURRENT
from tests.integration.server import Server, generate, stream
from tests.integration.waiting import until

pytestmark = pytest.mark.model

AT_ONCE = 64
"""More than the server runs at once: some of them leave while they wait in its queue."""
LONG = {"max_new_tokens": 400, "ignore_eos": True}
GAUGES = ("tgi_batch_current_size", "tgi_queue_size", "tgi_async_used_blocks")

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request_bytes(path: str, i: int) -> bytes:
    body = json.dumps({"inputs": f"{i} times upon a time, " * 8, "parameters": LONG}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def before_the_body_is_complete(i: int, connection: Connection, draw: random.Random) -> None:
    whole = request_bytes("/generate_stream", i)
    connection[1].write(whole[: draw.randrange(1, len(whole))])
    await connection[1].drain()


async def as_soon_as_it_is_sent(i: int, connection: Connection, draw: random.Random) -> None:
    connection[1].write(request_bytes("/generate_stream", i))
    await connection[1].drain()


async def in_mid_stream(i: int, connection: Connection, draw: random.Random) -> None:
    connection[1].write(request_bytes("/generate_stream", i))
    for _ in range(draw.randrange(1, 12)):
        await connection[0].readline()


async def while_the_answer_is_computed(i: int, connection: Connection, draw: random.Random) -> None:
    connection[1].write(request_bytes("/generate", i))
    await asyncio.sleep(draw.uniform(0, 0.5))


async def without_reading_any_of_the_stream(
    i: int, connection: Connection, draw: random.Random
) -> None:
    connection[1].write(request_bytes("/generate_stream", i))
    await asyncio.sleep(draw.uniform(0, 0.5))


LEAVES: tuple[Callable[[int, Connection, random.Random], Awaitable[None]], ...] = (
    before_the_body_is_complete,
    as_soon_as_it_is_sent,
    in_mid_stream,
    while_the_answer_is_computed,
    without_reading_any_of_the_stream,
)


async def leave(server: Server, i: int, at_once: asyncio.Semaphore) -> None:
    """One client that goes away: every second one politely, the others with a reset."""
    draw = random.Random(i)
    async with at_once:
        connection = await asyncio.open_connection("127.0.0.1", server.port)
        writer = connection[1]
        try:
            await LEAVES[i % len(LEAVES)](i, connection, draw)
        finally:
            if draw.random() < 0.5:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
            writer.close()


async def until_all_is_free(server: Server) -> None:
    """Wait until the last step that still computed for somebody has come back."""
    async with server.client() as client:

        async def free() -> bool:
            now = await gauges(client)
            return not any(now[name] for name in GAUGES)

        await until(free)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    return Server.parse(await client.get("/metrics"))


@pytest.mark.parametrize("n_clients", [80, pytest.param(200, marks=pytest.mark.full)])
async def test_clients_that_leave_under_load(
    server: Server, report: list[str], n_clients: int
) -> None:
    wanted = ("A list of rivers:", {"max_new_tokens": 60, "ignore_eos": True})
    async with server.client() as client:
        undisturbed = await stream(client, *wanted)
        before = await gauges(client)
        most = 0.0

        async def arrived() -> bool:
            return (await gauges(client))["tgi_request_count"] == before["tgi_request_count"] + 2

        async def served() -> bool:
            nonlocal most
            most = max(most, (await gauges(client))["tgi_async_used_blocks"])
            return all(task.done() for task in staying)

        at_once = asyncio.Semaphore(AT_ONCE)
        # Two clients stay, and hold their places before the others come.
        async with asyncio.TaskGroup() as group:
            staying = [group.create_task(stream(client, *wanted)) for _ in range(2)]
            await until(arrived)
            for i in range(n_clients):
                group.create_task(leave(server, i, at_once))
            await until(served)
        await until_all_is_free(server)
        after = await gauges(client)

        assert [task.result() for task in staying] == [undisturbed] * 2
        assert most > 0
        assert after["tgi_request_success"] == before["tgi_request_success"] + 2
        assert after["tgi_async_worker_restarts"] == before["tgi_async_worker_restarts"]
        report.append(
            f"disconnects: {n_clients} clients left, {most:.0f} blocks used at most, 0 at the end"
        )

        # Every place is free again: as many as are allowed at once are all served.
        short = ("A list of rivers:", {"max_new_tokens": 2})
        replies = await asyncio.gather(*(generate(client, *short) for _ in range(CONCURRENT)))
        assert all(reply.tokens == undisturbed.tokens[:2] for reply in replies)
        assert await stream(client, *wanted) == undisturbed


@pytest.mark.parametrize("leaves", LEAVES, ids=lambda function: function.__name__)
async def test_a_client_that_leaves_alone(
    server: Server, leaves: Callable[[int, Connection, random.Random], Awaitable[None]]
) -> None:
    for i in range(4):
        connection = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            await leaves(i, connection, random.Random(i))
        finally:
            connection[1].close()
    await until_all_is_free(server)

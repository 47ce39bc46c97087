"""Strangers at the port at which a leader waits for other nodes, and nodes that talk nonsense."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

import pytest
import zmq
import zmq.asyncio

from tests.attacks.test_frames import FOREIGN
from tests.cluster.conftest import KEYS, Make, Nodes, nodes, restarter
from tests.doubles.fake_engine_run import DEADLINE
from tests.test_supervisor import FIRST, START, ignore
from tgi_async.cluster import sockets
from tgi_async.cluster.secret import keys_of
from tgi_async.wire.messages import Step

__all__ = ["nodes", "restarter"]

N_IDLE = 100
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01"
"""Of ZMTP 3.1; a mechanism follows."""
PLAIN = GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x19\x05READY" + bytes(18)
CURVE = GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x06" + (2**62).to_bytes(8, "big")
FIRST_BYTES = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", PLAIN, CURVE)


async def say(nodes: Nodes, words: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", nodes.port)
    with suppress(ConnectionError):
        writer.write(words)
        await writer.drain()
    return writer


async def report(nodes: Nodes, secret: bytes, frames: Sequence[bytes | list[bytes]]) -> None:
    """Send frames as a node with this secret would."""
    context = zmq.asyncio.Context()
    endpoint = sockets.endpoint_of("127.0.0.1", nodes.port)
    keys = keys_of(secret) if secret else KEYS
    async with sockets.member_socket(context, endpoint, keys, os.urandom(8), ignore_line) as node:
        for frame in frames:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await node.send_multipart([frame] if isinstance(frame, bytes) else frame)
    await sockets.end(context)


def ignore_line(line: str) -> None:
    """What a stranger is told."""


async def test_strangers_at_the_port_for_nodes_cost_nothing(
    nodes: Nodes, restarter: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = restarter(await nodes.lead())
    there = nodes.join()
    await workers.launch(START, ignore)
    group = workers.group
    assert group is not None
    pids = group.pids + there.pids
    said = [await say(nodes, words) for words in FIRST_BYTES for _ in range(5)]
    said += [await say(nodes, b"") for _ in range(N_IDLE)]
    foreign = [frame for frames in FOREIGN for frame in frames]
    await report(nodes, b"another secret of others", foreign[:2])
    await report(nodes, b"", [*foreign, [b"two", b"parts"], os.urandom(2000)])
    async with asyncio.timeout(DEADLINE):
        group.send(FIRST)
        await group.receive()
        for number in range(2, 20):
            group.send(Step(number, [], [], [], []))
            await group.receive()
    for writer in said:
        writer.close()
    assert group.pids + there.pids == pids
    assert not there.running.done()
    assert len(caplog.messages) < 40

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import zmq
import zmq.asyncio

from tgi_async.cluster.secret import Keys, keys_of
from tgi_async.cluster.sockets import (
    Socket,
    bound_to,
    end,
    endpoint_of,
    leader_socket,
    member_socket,
)
from tgi_async.wire.nodes import MAX_FRAME_BYTES

KEYS = keys_of(b"correct horse battery staple")
OTHER = keys_of(b"another secret of a cluster")
ANY_PORT = "tcp://127.0.0.1:*"


class Told:
    """The lines that one side was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._come = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._come.set()

    async def line(self) -> str:
        """The first line, once it is there."""
        await self._come.wait()
        return self.lines[0]


class Nodes:
    """A leader, and what connects to it, each in a context of its own, as in another process."""

    def __init__(self) -> None:
        self.closing = AsyncExitStack()
        self.leader_told, self.member_told = Told(), Told()
        self.endpoint = ""

    def context(self) -> zmq.asyncio.Context:
        made = zmq.asyncio.Context()
        self.closing.push_async_callback(end, made)
        return made

    async def leader(self, endpoint: str = ANY_PORT) -> Socket:
        made = leader_socket(self.context(), endpoint, KEYS, self.leader_told)
        router = await self.closing.enter_async_context(made)
        self.endpoint = bound_to(router)
        return router

    async def member(self, keys: Keys = KEYS, identity: bytes = b"node 1") -> Socket:
        made = member_socket(self.context(), self.endpoint, keys, identity, self.member_told)
        return await self.closing.enter_async_context(made)

    def plain(self) -> Socket:
        """A client without any keys."""
        made = self.closing.enter_context(self.context().socket(zmq.DEALER))
        made.setsockopt(zmq.LINGER, 0)
        made.connect(self.endpoint)
        return made


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    made = Nodes()
    async with made.closing:
        yield made


async def test_what_nodes_with_the_secret_send_comes_through(nodes: Nodes) -> None:
    router = await nodes.leader()
    dealer = await nodes.member()
    await dealer.send(b"here")
    assert await router.recv_multipart() == [b"node 1", b"here"]
    await router.send_multipart([b"node 1", b"x" * MAX_FRAME_BYTES])
    assert await dealer.recv() == b"x" * MAX_FRAME_BYTES
    assert nodes.leader_told.lines == nodes.member_told.lines == []


async def test_another_secret_gets_nothing_through_and_both_sides_say_so_once(
    nodes: Nodes,
) -> None:
    router = await nodes.leader()
    dealer = await nodes.member(OTHER)
    with pytest.raises(zmq.Again):
        await dealer.send(b"here", zmq.NOBLOCK)
    assert await nodes.member_told.line() == (
        f"the leader at {nodes.endpoint} does not take the cluster secret of this node, or another "
        "program is there: it ends each connection"
    )
    assert await nodes.leader_told.line() == "127.0.0.1 has another cluster secret: refused"
    assert not await router.poll(0)
    assert len(nodes.leader_told.lines) == len(nodes.member_told.lines) == 1


async def test_another_key_than_the_members_gets_nothing_through(nodes: Nodes) -> None:
    router = await nodes.leader()
    keys = KEYS._replace(member_public=OTHER.member_public, member_secret=OTHER.member_secret)
    dealer = await nodes.member(keys)
    with pytest.raises(zmq.Again):
        await dealer.send(b"here", zmq.NOBLOCK)
    assert await nodes.leader_told.line() == "127.0.0.1 has another key than the nodes: refused"
    assert await nodes.member_told.line() == (
        f"the leader at {nodes.endpoint} does not take the key of this node"
    )
    assert not await router.poll(0)


async def test_a_client_without_keys_gets_nothing_through(nodes: Nodes) -> None:
    router = await nodes.leader()
    plain = nodes.plain()
    with plain.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        await plain.send(b"here")
        await monitor.recv_multipart()
        plain.disable_monitor()
    dealer = await nodes.member()
    await dealer.send(b"of a node")
    assert await router.recv_multipart() == [b"node 1", b"of a node"]
    assert not await router.poll(0)


async def test_a_leader_that_does_not_know_the_secret_gets_nothing(nodes: Nodes) -> None:
    # One that listens where the leader should, and takes whatever comes.
    router = nodes.closing.enter_context(nodes.context().socket(zmq.ROUTER))
    router.bind(ANY_PORT)
    nodes.endpoint = bound_to(router)
    dealer = await nodes.member()
    await nodes.member_told.line()
    with pytest.raises(zmq.Again):
        await dealer.send(b"here", zmq.NOBLOCK)
    assert not await router.poll(0)


async def test_the_keys_of_members_do_not_make_a_leader(nodes: Nodes) -> None:
    # Whoever has a member's key pair alone cannot pass for the leader.
    keys = KEYS._replace(leader_secret=KEYS.member_secret)
    made = leader_socket(nodes.context(), ANY_PORT, keys, nodes.leader_told)
    router = await nodes.closing.enter_async_context(made)
    nodes.endpoint = bound_to(router)
    dealer = await nodes.member()
    await nodes.leader_told.line()
    with pytest.raises(zmq.Again):
        await dealer.send(b"here", zmq.NOBLOCK)


async def test_a_probe_of_the_port_is_nothing_to_tell(nodes: Nodes) -> None:
    router = await nodes.leader()
    port = int(nodes.endpoint.rpartition(":")[2])
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as probe:
            probe.sendall(said)
    dealer = await nodes.member()
    await dealer.send(b"here")
    assert await router.recv_multipart() == [b"node 1", b"here"]
    assert nodes.leader_told.lines == []


async def test_a_member_that_is_there_again_takes_its_place(nodes: Nodes) -> None:
    router = await nodes.leader()
    old = await nodes.member()
    await old.send(b"old")
    await router.recv_multipart()
    new = await nodes.member()
    await new.send(b"new")
    assert await router.recv_multipart() == [b"node 1", b"new"]
    await router.send_multipart([b"node 1", b"to the new one"])
    assert await new.recv() == b"to the new one"
    assert not await old.poll(0)


async def test_a_member_finds_a_leader_that_comes_later(nodes: Nodes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nodes.endpoint = endpoint_of("127.0.0.1", taken.getsockname()[1])
    dealer = await nodes.member()
    sent = asyncio.ensure_future(dealer.send(b"here"))
    router = await nodes.leader(nodes.endpoint)
    assert await router.recv_multipart() == [b"node 1", b"here"]
    await sent


async def test_a_member_finds_a_leader_where_another_program_was(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgi_async.cluster.sockets.AGAIN_SECONDS", 0.01)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n" * 8)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    nodes.endpoint = endpoint_of("127.0.0.1", port)
    dealer = await nodes.member()
    line = await nodes.member_told.line()
    assert line.startswith(f"the leader at {nodes.endpoint} ")
    assert "another program is there" in line
    server.close()
    router = await nodes.leader(nodes.endpoint)
    await dealer.send(b"here")
    assert await router.recv_multipart() == [b"node 1", b"here"]


@pytest.mark.parametrize("of_leader", [True, False])
async def test_a_frame_that_is_too_long_ends_the_connection_and_the_next_one_is_good(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, of_leader: bool
) -> None:
    monkeypatch.setattr("tgi_async.cluster.sockets.AGAIN_SECONDS", 0.01)
    router = await nodes.leader()
    dealer = await nodes.member()
    await dealer.send(b"here")
    await router.recv_multipart()
    too_long = b"x" * (2 * MAX_FRAME_BYTES)
    send, gets = (dealer.send, router) if not of_leader else (router.send_multipart, dealer)
    wrap: Any = (lambda frame: [b"node 1", frame]) if of_leader else (lambda frame: frame)
    await send(wrap(too_long))
    while not await gets.poll(20):
        # What was under way when the connection ended is lost.
        with contextlib.suppress(zmq.Again):
            await send(wrap(b"after"), zmq.NOBLOCK)
    assert (await gets.recv_multipart())[-1] == b"after"


async def test_an_address_that_is_taken_is_an_error(nodes: Nodes) -> None:
    await nodes.leader()
    with pytest.raises(zmq.ZMQError, match="Address already in use"):
        await nodes.leader(nodes.endpoint)


def test_endpoints_have_brackets_around_ipv6() -> None:
    assert endpoint_of("192.0.2.7", 1) == "tcp://192.0.2.7:1"
    assert endpoint_of("2001:db8::7", 1) == "tcp://[2001:db8::7]:1"
    assert endpoint_of("*", 1) == "tcp://*:1"


async def test_the_end_does_not_wait_for_a_connection_that_does_not_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tgi_async.cluster.sockets.END_SECONDS", 0.01)
    context = zmq.asyncio.Context()
    with context.socket(zmq.DEALER):
        await end(context)
        assert not context.closed

"""The other nodes, as the leader sees them.

The leader tells each member twice a second, and whenever it changes, which groups of workers are to
live; a member reports as often what lives. One that is silent for `SILENT_SECONDS` is lost, with
all groups that have ranks there: they are never repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

import msgspec
import zmq
import zmq.asyncio

from tgi_async.aside import aside
from tgi_async.build_info import build_info
from tgi_async.cluster import interfaces, sockets
from tgi_async.cluster.beside import beside
from tgi_async.cluster.repeats import Repeats
from tgi_async.cluster.secret import Keys
from tgi_async.cluster.topology import Topology
from tgi_async.errors import StartError
from tgi_async.processes import Activity
from tgi_async.supervisor import NodeLost, WorkerDied
from tgi_async.wire.codec import WireError
from tgi_async.wire.messages import RankConfig, Ready, Start
from tgi_async.wire.nodes import (
    MOST_TEXT,
    Ended,
    GroupOrder,
    GroupReport,
    NodeInfo,
    Order,
    Rejected,
    Report,
    ToMember,
    to_leader_codec,
    to_member_codec,
)

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
SILENT_SECONDS = 5.0
"""A node that is silent for so long is lost. Shorter would cost a load of the model for what the
network makes good by itself."""
END_SECONDS = 5.0
"""How long the members get to end."""
REMIND_SECONDS = 30.0
"""Least time between two lines in the log on who is waited for."""
MOST_AWAY = 64
"""Of those that knock and are not taken, so many are told apart."""


class Member:
    """A node that was taken."""

    def __init__(self, identity: bytes, report: Report, address: str) -> None:
        self.identity = identity
        self.name = report.member
        self.address = address
        self.where = f"node {report.node.rank} ({report.node.host}, {address})"
        self.silent = 0.0
        """Seconds since its last report, as far as this process ran."""
        self.groups: dict[int, GroupReport] = {}
        """Its last report."""

    @property
    def state(self) -> list[tuple[int, bool, str]]:
        """What of the report someone may wait for."""
        return [
            (epoch, one.ready is not None, one.refused or one.ended)
            for epoch, one in self.groups.items()
        ]


@contextlib.asynccontextmanager
async def leading(topology: Topology, keys: Keys) -> AsyncIterator[Cluster]:
    """Have the port for the members until the end of the context; then they end, too.

    Raises StartError where the port cannot be had.
    """
    context = zmq.asyncio.Context()
    endpoint = await _endpoint(topology)
    try:
        async with sockets.leader_socket(context, endpoint, keys, log.warning) as router:
            cluster = Cluster(topology, router)
            async with beside(cluster.hear(), cluster.beat()):
                try:
                    yield cluster
                finally:
                    await cluster.close()
    except zmq.ZMQError as error:
        raise StartError(
            f"The other nodes cannot be waited for at {endpoint}: {error}. Choose another port by "
            "--master-port, the same for all nodes."
        ) from error
    finally:
        await sockets.end(context)


async def _endpoint(topology: Topology) -> str:
    """Return where to listen: at the leader's address, or at all where others must know it by
    another one: that of a service, or this machine's own name, which is a loopback address here."""
    address = "*"
    with contextlib.suppress(interfaces.NotResolved):
        route = await aside(
            partial(interfaces.towards, topology.address, topology.port), interfaces.ASIDE
        )
        if route is not None and interfaces.is_mine(route.peer):
            local = ipaddress.ip_address(route.peer).is_loopback
            address = "*" if local and topology.address != route.peer else route.peer
    return sockets.endpoint_of(address, topology.port)


class Cluster:
    """The members. They may come and go from `open` to `close`."""

    def __init__(self, topology: Topology, router: zmq.asyncio.Socket) -> None:
        """`router` is the socket that they connect to."""
        self._topology = topology
        self.n_nodes = topology.nnodes
        self._n_ranks = 0
        self._name = uuid.uuid4().hex
        self._model = ""
        self._encode = to_member_codec().encode
        self._decode = to_leader_codec().decode
        self._socket = router
        self._repeats = Repeats(log.warning)
        self._members: dict[int, Member] = {}
        """By the rank of their node."""
        self._away: dict[str, float] = {}
        """Since when members knock whose place is taken."""
        self._orders: dict[int, Start] = {}
        """The groups that are to live, by epoch."""
        self._ranks: dict[int, RemoteRanks] = {}
        self._came = asyncio.Event()
        self._left = asyncio.Event()
        self._ends = False
        """Whether all is to end."""
        self._opened = asyncio.Event()

    @property
    def missing(self) -> list[int]:
        """Nodes that are not there."""
        return [rank for rank in range(1, self._topology.nnodes) if rank not in self._members]

    def open(self, model: str, n_ranks: int) -> None:
        """Take members from now on, which have the same `model`, and as many workers each."""
        self._model, self._n_ranks = model, n_ranks
        self._opened.set()

    async def close(self) -> None:
        """Have all members end, and wait for a while until they have."""
        self._ends = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while self._members:
                    self._left.clear()
                    await self._send_orders()
                    await self._left.wait()

    def ranks(self, epoch: int) -> RemoteRanks:
        """Return the ranks of an epoch that are on members, which are not started yet."""
        made = RemoteRanks(self, epoch)
        self._ranks[epoch] = made
        return made

    async def complete(self, on_waiting: Callable[[str], None]) -> None:
        """Return once all nodes are there; `on_waiting` gets who is waited for, when that
        changes."""
        told: list[int] = []
        told_at = 0.0
        while missing := self.missing:
            if missing != told or time.monotonic() > told_at + REMIND_SECONDS:
                told, told_at = missing, time.monotonic()
                who = ", ".join(map(str, missing))
                on_waiting(f"waiting for node {who} of {self._topology.nnodes}")
                log.info(
                    "waiting for node %s of %d: the same command there, with --node-rank, connects "
                    "to port %d of %s",
                    who,
                    self._topology.nnodes,
                    self._topology.port,
                    self._topology.address,
                )
            self._came.clear()
            try:
                async with asyncio.timeout(REMIND_SECONDS):
                    await self._came.wait()
            except TimeoutError:
                continue

    def place(self, ranks: RankConfig) -> RankConfig:
        """Return `ranks` with where those of an epoch meet, a free port of this node, and by which
        interface it reaches the others."""
        # Rank 0 says so where another program is faster.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as probe:
            port: int = probe.getsockname()[1]
        return msgspec.structs.replace(
            ranks,
            n_nodes=self.n_nodes,
            meeting_place=sockets.endpoint_of(self._topology.address, port),
            interface=self._interface(),
        )

    def _interface(self) -> str:
        """Return the interface by which this node reaches all members; "" where it is unknown."""
        routes = [
            (member.where, interfaces.towards(member.address, 9))
            for _, member in sorted(self._members.items())
        ]
        by = {route.interface: where for where, route in routes if route and route.interface}
        if len(by) > 1:
            self._repeats.tell(
                "nodes are reached by different interfaces, and ranks use one alone: "
                + ", ".join(f"{where} by {interface}" for interface, where in by.items())
                + ". Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME here if that is the wrong one"
            )
        return next(iter(by), "")

    # -- for RemoteRanks ------------------------------------------------------------------------

    async def order(self, epoch: int, start: Start) -> None:
        """Have the group live on all members. Raises StartError for what does not fit a frame."""
        orders = {**self._orders, epoch: start}
        try:
            self._encode(self._order(orders))
        except WireError as error:
            raise StartError(
                f"The other nodes cannot be told how to start: {error}. The chat template ends "
                f"answers in {len(start.stop_token_ids)} ways: give another one by "
                "--tokenizer-config-path."
            ) from error
        self._orders = orders
        await self._send_orders()

    async def revoke(self, epoch: int) -> None:
        """Have the group end on all members."""
        self._ranks.pop(epoch, None)
        if self._orders.pop(epoch, None) is not None:
            await self._send_orders()

    def reports(self, epoch: int) -> dict[str, GroupReport]:
        """Return what the members say of a group, by where they are.

        What ranks do is unknown where a member did not report for two beats: what it said before
        looks as if they did nothing, and whether the node is gone is known later than that is held
        against them.
        """
        return {
            member.where: member.groups[epoch]
            if member.silent <= BEAT_SECONDS
            else msgspec.structs.replace(member.groups[epoch], seconds=None, stopped=False)
            for member in self._members.values()
            if epoch in member.groups
        }

    # -- the members ----------------------------------------------------------------------------

    async def hear(self) -> None:
        """Take what members report, from `open` on."""
        await self._opened.wait()
        while True:
            identity, frame, *more = await self._socket.recv_multipart(copy=False)
            address = str(frame.get("Peer-Address")).removeprefix("::ffff:")
            try:
                if more:
                    raise WireError(f"{len(more)} parts too many")
                report = self._decode(frame.buffer)
            except WireError as error:
                self._repeats.tell(f"what came from {address} is not a node's report: {error}")
                continue
            try:
                await self._take(bytes(identity.buffer), report, address)
            except Exception:
                # The next one is to be heard all the same.
                log.exception("a report of %s failed", address)

    async def _take(self, identity: bytes, report: Report, address: str) -> None:
        rank = report.node.rank
        member = self._members.get(rank)
        if member is not None and member.name == report.member:
            if report.leaves:
                self._lose(rank, "left")
                await self._send(identity, Ended())
                return
            member.silent = 0.0
            before, had = member.state, member.groups
            member.groups = {}
            if report.leader == self._name:
                member.groups = {one.epoch: one for one in report.groups}
            if member.state != before:
                for ranks in self._ranks.values():
                    ranks.changed()
            for epoch in had.keys() - member.groups.keys():
                self._forget(epoch, f"{member.where} heard nothing for long, and ended its ranks")
            return
        if report.leaves or self._ends:
            await self._send(identity, Ended())
            return
        if reason := self._mismatch(report.node):
            self._repeats.tell(f"{report.node.host!r} at {address} is not taken: {reason}")
            await self._send(identity, Rejected(reason[:MOST_TEXT]))
            return
        if member is not None:
            await self._knock(identity, report.member, member)
            return
        self._away.pop(report.member, None)
        self._members[rank] = member = Member(identity, report, address)
        log.info("%s is there", member.where)
        self._came.set()
        await self._send(identity, self._order(self._orders))

    def _mismatch(self, node: NodeInfo) -> str:
        """Return why such a node cannot be one of these; "" if it can."""
        version = str(build_info())
        if node.version != version:
            return f"the leader is tgi-async {version}, and the node {node.version}"
        if node.n_nodes != self._topology.nnodes:
            return f"the leader was given --nnodes {self._topology.nnodes}, the node {node.n_nodes}"
        if not 0 < node.rank < node.n_nodes:
            return f"its --node-rank is {node.rank}, and the leader is 0 of {node.n_nodes}"
        if node.n_ranks != self._n_ranks:
            return (
                f"the leader has {self._n_ranks} ranks on each node, and the node {node.n_ranks}; "
                "--num-shard is to be the same, and so are the GPUs"
            )
        if node.model != self._model:
            return (
                "the node has other files of the model than the leader; give the same --model-id "
                "and --revision"
            )
        return ""

    async def _knock(self, identity: bytes, name: str, there: Member) -> None:
        """Let a member wait while its place is taken: by one that died, or by one that lives."""
        if len(self._away) > MOST_AWAY:
            self._away.clear()
        since = self._away.setdefault(name, time.monotonic())
        if time.monotonic() - since > 2 * SILENT_SECONDS:
            await self._send(identity, Rejected(f"{there.where} is there already, and lives"))

    async def beat(self) -> None:
        """Send the orders again and again, and look for members that are silent."""
        await self._opened.wait()
        before = time.monotonic()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now = time.monotonic()
            # If this process did not run, nothing is known of what they sent meanwhile.
            passed, before = min(now - before, 2 * BEAT_SECONDS), now
            for rank, member in list(self._members.items()):
                member.silent += passed
                if member.silent > SILENT_SECONDS:
                    self._lose(rank, f"was silent for {SILENT_SECONDS:g} seconds")
            await self._send_orders()

    def _lose(self, rank: int, how: str) -> None:
        member = self._members.pop(rank)
        self._left.set()
        reason = f"{member.where} {how}"
        log.log(logging.INFO if self._ends else logging.WARNING, "%s", reason)
        for epoch in list(self._orders):
            self._forget(epoch, reason)

    def _forget(self, epoch: int, reason: str) -> None:
        """Order a group no more, as some of its ranks are gone."""
        if self._orders.pop(epoch, None) is not None:
            self._ranks[epoch].lose(reason)

    async def _send_orders(self) -> None:
        order = Ended() if self._ends else self._order(self._orders)
        for member in list(self._members.values()):
            await self._send(member.identity, order)

    def _order(self, orders: dict[int, Start]) -> Order:
        groups = [GroupOrder(epoch, start) for epoch, start in orders.items()]
        return Order(self._name, groups)

    async def _send(self, identity: bytes, message: ToMember) -> None:
        """Send what can be sent now: all of it is said again."""
        try:
            await self._socket.send_multipart([identity, self._encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("nothing was sent to a node: %s", error)


class RemoteRanks:
    """The ranks of one epoch that are on members."""

    def __init__(self, cluster: Cluster, epoch: int) -> None:
        self._cluster = cluster
        self._epoch = epoch
        self._lost = ""
        self._on_change: Callable[[], None] = lambda: None

    async def complete(self, on_waiting: Callable[[str], None]) -> None:
        """Return once all nodes are there."""
        await self._cluster.complete(on_waiting)

    def place(self, ranks: RankConfig) -> RankConfig:
        """Return `ranks` with where all of them meet."""
        return self._cluster.place(ranks)

    async def launch(self, start: Start, on_change: Callable[[], None]) -> None:
        """Have them started; `on_change` is called when more is known of them.

        Raises NodeLost.
        """
        self._on_change = on_change
        if missing := self._cluster.missing:
            raise NodeLost(f"node {missing[0]} is gone")
        await self._cluster.order(self._epoch, start)

    def ready(self) -> list[Ready] | None:
        """Return what each node reported, once all of them are ready."""
        ready = [one.ready for one in self._reports().values() if one.ready is not None]
        return ready if len(ready) == self._cluster.n_nodes - 1 else None

    def check(self) -> None:
        """Raise NodeLost where a node is gone, StartError where one cannot serve the model, and
        WorkerDied where a rank died."""
        if self._lost:
            raise NodeLost(self._lost)
        for where, one in self._reports().items():
            if one.refused:
                raise StartError(f"{where}: {one.refused}")
            if one.ended:
                raise WorkerDied(f"{where}: {one.ended}")

    def activities(self) -> Iterable[Activity]:
        """Return what the ranks of each node do."""
        return [Activity(one.seconds, one.read, one.stopped) for one in self._reports().values()]

    async def end(self) -> None:
        """Have them ended."""
        self._on_change = lambda: None
        await self._cluster.revoke(self._epoch)

    def lose(self, reason: str) -> None:
        """Note that a node is gone."""
        self._lost = self._lost or reason
        self._on_change()

    def changed(self) -> None:
        """Note that there was a report."""
        self._on_change()

    def _reports(self) -> dict[str, GroupReport]:
        return self._cluster.reports(self._epoch)

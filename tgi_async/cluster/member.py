"""A node that has a part of the ranks, and none of the server.

It prepares the model, offers itself to the leader, and does what that orders: it starts its ranks,
watches them and ends them. Where the leader is silent they are ended, as nobody else would, and the
node offers itself again; where the leader ends in order, so does the node.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from tgi_async.build_info import build_info
from tgi_async.cluster import interfaces, sockets
from tgi_async.cluster.leader import BEAT_SECONDS, REMIND_SECONDS
from tgi_async.cluster.secret import Keys
from tgi_async.cluster.topology import Topology
from tgi_async.errors import StartError
from tgi_async.fork_server import ForkServer
from tgi_async.supervisor import WORKER, WorkerDied, WorkerGroup, environment
from tgi_async.wire.codec import WireError
from tgi_async.wire.messages import Loading, Ready, Start
from tgi_async.wire.nodes import (
    MOST_NOTES,
    MOST_TEXT,
    Ended,
    GroupReport,
    NodeInfo,
    Order,
    Rejected,
    Report,
    to_leader_codec,
    to_member_codec,
)

log = logging.getLogger(__name__)

SILENT_SECONDS = 10.0
"""A leader that is silent for so long is gone. That is longer than what it grants its members, so
that one that was suspended finds them as they were."""
GOODBYE_SECONDS = 0.5
"""How long the leader may take to hear that this node leaves."""

Key = tuple[str, int]
"""A group: the leader's name, and the epoch."""


class ModelHere(msgspec.Struct, frozen=True):
    """Where this node has the model."""

    folder: str
    speculator: str
    fingerprint: str


class Member:
    """This node, from `run` on."""

    def __init__(
        self,
        topology: Topology,
        keys: Keys,
        n_ranks: int,
        model: ModelHere,
        folder: Path,
        command: tuple[str, ...] = WORKER,
    ) -> None:
        """`n_ranks` is the number of workers here, and `folder` is for their sockets."""
        self._topology = topology
        self._n_ranks = n_ranks
        self._model = model
        self._folder = folder
        self._command = command
        self._name = uuid.uuid4().hex
        self._info = NodeInfo(
            topology.node_rank,
            topology.nnodes,
            n_ranks,
            str(build_info()),
            model.fingerprint,
            socket.gethostname(),
        )
        self._route: interfaces.Route
        """To the leader."""
        self._fork_server = ForkServer(folder, environment()) if command == WORKER else None
        self._encode = to_leader_codec().encode
        self._decode = to_member_codec().decode
        self._keys = keys
        self._socket: zmq.asyncio.Socket
        self._leader = ""
        """Who ordered the groups; "" where there is none."""
        self._wanted: dict[Key, Start] = {}
        self._groups: dict[Key, _Group] = {}
        self._changed = asyncio.Event()
        self._silent = 0.0
        """Seconds since the leader's last frame, as far as this process ran."""
        self._n_started = 0
        self._told_at = -REMIND_SECONDS
        """When the log said who is waited for."""

    @property
    def is_taken(self) -> bool:
        """Whether a leader has this node."""
        return bool(self._leader)

    async def run(self) -> None:
        """Do what the leader orders until it ends. Raises StartError where it does not take this
        node."""
        context = zmq.asyncio.Context()
        try:
            # A leader that is started anew may have another address by the same name.
            while not await self._meet(context):
                """It is looked for again."""
        finally:
            if self._fork_server is not None:
                await self._fork_server.stop()
            await sockets.end(context)

    async def _meet(self, context: zmq.asyncio.Context) -> bool:
        """Do what the leader orders. Return whether it has ended; otherwise it is silent."""
        address, port = self._topology.address, self._topology.port
        self._route = await interfaces.found(address, port)
        endpoint = sockets.endpoint_of(self._route.peer, port)
        name = self._name.encode()
        self._silent = 0.0
        async with sockets.member_socket(context, endpoint, self._keys, name, log.error) as dealer:
            self._socket = dealer
            if time.monotonic() > self._told_at + REMIND_SECONDS:
                self._told_at = time.monotonic()
                log.info("waiting for the leader at %s, port %d", address, port)
            hearing = asyncio.create_task(self._hear())
            others = [asyncio.create_task(one) for one in (self._beat(), self._follow())]
            try:
                done, _ = await asyncio.wait([hearing, *others], return_when="FIRST_COMPLETED")
                for task in done:
                    task.result()
                return hearing in done
            finally:
                for task in [hearing, *others]:
                    task.cancel()
                await asyncio.wait([hearing, *others])
                await self._end()

    async def _end(self) -> None:
        """Tell the leader, and end all ranks."""
        # It may have taken this node though nothing has come from it yet.
        if await self._report(leaves=True):
            with suppress(TimeoutError, WireError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    while not isinstance(self._decode(await self._socket.recv()), Ended):
                        """Until the leader has heard it."""
        self._leader, self._wanted = "", {}
        for group in self._groups.values():
            await group.end()
        self._groups.clear()

    async def _hear(self) -> None:
        """Take what the leader sends until it ends. Raises StartError."""
        while True:
            frame = await self._socket.recv()
            self._silent = 0.0
            try:
                message = self._decode(frame)
            except WireError as error:
                raise StartError(
                    f"The leader is not of this version of tgi-async: {error}. Install the same "
                    "one on all nodes."
                ) from error
            if isinstance(message, Ended):
                log.info("the leader has ended")
                return
            if isinstance(message, Rejected):
                raise StartError(f"The leader does not take this node: {message.message}.")
            self._take(message)

    def _take(self, order: Order) -> None:
        if order.leader != self._leader:
            log.info("the leader took this node as number %d", self._topology.node_rank)
            self._leader = order.leader
        wanted = {(order.leader, one.epoch): one.start for one in order.groups}
        if wanted.keys() != self._wanted.keys():
            self._changed.set()
        self._wanted = wanted

    async def _beat(self) -> None:
        """Report again and again, until the leader is silent."""
        before = time.monotonic()
        while self._silent < SILENT_SECONDS:
            await self._report()
            await asyncio.sleep(BEAT_SECONDS)
            now = time.monotonic()
            # If this process did not run, nothing is known of what was sent meanwhile.
            self._silent += min(now - before, 2 * BEAT_SECONDS)
            before = now
        if self._leader:
            log.warning(
                "the leader was silent for %g seconds: its ranks here are ended", SILENT_SECONDS
            )

    async def _follow(self) -> None:
        """End the groups that are not wanted any more, then start those that are."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for key in [key for key in self._groups if key not in self._wanted]:
                await self._groups[key].end()
                del self._groups[key]
            for key, start in list(self._wanted.items()):
                if key not in self._groups:
                    self._groups[key] = self._start(key[1], start)
            await self._report()

    def _start(self, epoch: int, start: Start) -> _Group:
        # Epochs of two leaders may be equal, and names of sockets must not.
        self._n_started += 1
        first = self._topology.node_rank * self._n_ranks
        group = WorkerGroup(
            self._folder,
            self._n_started,
            start.ranks.world_size,
            self._command,
            fork_server=self._fork_server,
            ranks=range(first, first + self._n_ranks),
        )
        return _Group(epoch, group, self._here(start), self._report)

    def _here(self, start: Start) -> Start:
        """Return `start` with what differs on this node."""
        replace = msgspec.structs.replace
        speculator = self._model.speculator if start.speculation.path else ""
        port = int(start.ranks.meeting_place.rpartition(":")[2])
        return replace(
            start,
            model=replace(start.model, path=self._model.folder),
            speculation=replace(start.speculation, path=speculator),
            ranks=replace(
                start.ranks,
                meeting_place=sockets.endpoint_of(self._route.peer, port),
                interface=self._route.interface,
            ),
        )

    async def _report(self, *, leaves: bool = False) -> bool:
        """Tell the leader how all is; return whether there is a connection to it."""
        groups = tuple(
            group.report() for (leader, _), group in self._groups.items() if leader == self._leader
        )
        report = Report(self._name, self._info, self._leader, groups, leaves)
        try:
            await self._socket.send(self._encode(report), zmq.NOBLOCK)
        except zmq.Again:
            return False  # it is said again soon
        return True


class _Group:
    """This node's ranks of an epoch, from their start on."""

    def __init__(
        self,
        epoch: int,
        group: WorkerGroup,
        start: Start,
        report: Callable[[], Awaitable[object]],
    ) -> None:
        self._epoch = epoch
        self._group = group
        self._start = start
        self._send_report = report
        self._ready: Ready | None = None
        self._refused = self._ended = ""
        self._task = asyncio.create_task(self._run())

    def report(self) -> GroupReport:
        """Return how they are."""
        found = self._group.activity()
        return GroupReport(
            self._epoch,
            found.seconds,
            found.read,
            found.stopped,
            self._ready,
            self._refused[:MOST_TEXT],
            self._ended[:MOST_TEXT],
        )

    async def end(self) -> None:
        """End them, and wait until they are gone."""
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._group.kill()

    async def _run(self) -> None:
        """Start them, and watch them until one ends."""
        try:
            self._ready = _cut(await self._group.launch(self._start, _show))
            log.info("the ranks of this node are ready")
            await self._send_report()
            self._ended = await self._group.ended()
            log.info("%s", self._ended)
        except StartError as error:
            self._refused = str(error)
            log.error("%s", error)
        except WorkerDied as error:
            self._ended = str(error)
            log.error("%s", error)
        except Exception as error:
            self._ended = f"the node failed: {error!r}"
            log.exception("the ranks of this node are ended")
        await self._group.kill()
        await self._send_report()


def _cut(ready: Ready) -> Ready:
    """Return `ready` with no more notes than fit a frame: a compiler's may be long."""
    notes = [note[:MOST_TEXT] for note in ready.notes[:MOST_NOTES]]
    # Rank 0 alone says what ends texts, and it is the leader's.
    return msgspec.structs.replace(ready, notes=notes, eos_token_ids=[])


def _show(loading: Loading) -> None:
    """Rank 0 says what is loading, which is on the leader."""

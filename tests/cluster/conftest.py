"""Nodes in one process, over loopback, with fake workers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.doubles.fake_engine_run import DEADLINE, ROOT
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tgi_async.backoff import Backoff
from tgi_async.cluster import leader, member
from tgi_async.cluster.leader import Cluster, leading
from tgi_async.cluster.member import Member, ModelHere
from tgi_async.cluster.secret import keys_of
from tgi_async.cluster.topology import Topology
from tgi_async.worker_restarter import WorkerRestarter

Make = Callable[..., WorkerRestarter]
KEYS = keys_of(b"a secret of the tests alone")
MODEL = "the same files"
BEAT_SECONDS = 0.05


class Joined(NamedTuple):
    """A member that runs."""

    member: Member
    running: asyncio.Task[None]

    @property
    def pids(self) -> list[int]:
        """Its workers."""
        return [pid for group in self.member._groups.values() for pid in group._group.pids]

    async def leave(self) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})


class Nodes:
    """Makes nodes, and ends them."""

    def __init__(self, folder: Path, n_nodes: int = 2) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.port = port
        self.topology = Topology(n_nodes, 0, "127.0.0.1", port, "--nnodes")
        self._n_made = 0
        self.leading = AsyncExitStack()
        """Ends the leader."""
        self.joined: list[Joined] = []

    async def lead(self, n_ranks: int = 1) -> Cluster:
        cluster = await self.leading.enter_async_context(leading(self.topology, KEYS))
        cluster.open(MODEL, n_ranks)
        return cluster

    def join(self, rank: int = 1, n_ranks: int = 1, model: str = MODEL) -> Joined:
        self._n_made += 1
        folder = self._folder / str(self._n_made)
        folder.mkdir()
        member = Member(
            self.topology._replace(node_rank=rank),
            KEYS,
            n_ranks,
            ModelHere(str(folder), "", model),
            folder,
            COMMAND,
        )
        joined = Joined(member, asyncio.create_task(member.run()))
        self.joined.append(joined)
        return joined

    async def end(self) -> None:
        for joined in self.joined:
            await joined.leave()
        await self.leading.aclose()


@pytest.fixture
async def nodes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Nodes]:
    monkeypatch.setenv(VARIABLE, Behaviour().environment())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # A member that connects is taken at its next report.
    monkeypatch.setattr(leader, "BEAT_SECONDS", BEAT_SECONDS)
    monkeypatch.setattr(member, "BEAT_SECONDS", BEAT_SECONDS)
    made = Nodes(tmp_path_factory.mktemp("n"))
    yield made
    await made.end()


@pytest.fixture
async def restarter() -> AsyncIterator[Make]:
    """Makes restarters of workers on all nodes of a cluster."""
    made: list[WorkerRestarter] = []

    def restarter(cluster: Cluster, world_size: int = 2) -> WorkerRestarter:
        made.append(WorkerRestarter(world_size, COMMAND, Backoff(first=0.01), nodes=cluster))
        return made[-1]

    yield restarter
    for workers in made:
        await workers.stop(DEADLINE)

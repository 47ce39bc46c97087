"""What `serve` does on a node that does not lead: it joins the one that does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from tgi_async.api.gate import Gate
from tgi_async.api.node_status import NodeStatus
from tgi_async.binding import bind, bind_to_path, removed_at_end
from tgi_async.certificate import Certificate
from tgi_async.cluster.fingerprint import fingerprint
from tgi_async.cluster.member import Member, ModelHere
from tgi_async.cluster.secret import keys_of, read_secret
from tgi_async.cluster.topology import Topology
from tgi_async.diagnosis import Diagnosis
from tgi_async.errors import StartError
from tgi_async.listener import answering, on_signals
from tgi_async.preparation import prepare
from tgi_async.serving import Commands, gate_for, outside
from tgi_async.settings import Settings
from tgi_async.shards import n_shards
from tgi_async.temporary import PrivateFolder

log = logging.getLogger(__name__)


async def join(settings: Settings, topology: Topology, commands: Commands) -> int:
    """Run this node's ranks until the leader ends, or a signal comes. Return the exit status.

    Raises StartError.
    """
    main = asyncio.current_task()
    assert main is not None
    stopped: list[str] = []

    def stop(name: str) -> None:
        if name == "SIGHUP":
            log.warning("SIGHUP: a server over several nodes is not exchanged while it serves")
        elif not stopped:
            stopped.append(name)
            main.cancel()

    on_signals(stop)
    Diagnosis().follow()
    keys = keys_of(read_secret(settings.cluster_secret_file, os.environ))
    try:
        with PrivateFolder() as scratch:
            n_ranks = n_shards(
                settings.sharded, settings.num_shard, os.environ, nnodes=topology.nnodes
            )
            gate = gate_for(settings)
            async with _answering(gate, settings):
                gate.phase("preparing the model")
                prepared = await prepare(settings, commands.prepare, scratch, None)
                model = ModelHere(
                    str(prepared.path), prepared.speculator, fingerprint(prepared.path)
                )
                member = Member(
                    topology,
                    keys,
                    n_ranks // topology.nnodes,
                    model,
                    Path(scratch),
                    commands.worker,
                )
                gate.open(NodeStatus(lambda: member.is_taken, topology.address))
                await member.run()
            return 0
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("%s: this node has left", stopped[0])
        return 0


@contextlib.asynccontextmanager
async def _answering(gate: Gate, settings: Settings) -> AsyncIterator[None]:
    """Have `gate` answer where a leader would, to whoever asks how this node is.

    Where that place is taken nobody can ask: two nodes may be on one machine.
    """
    path = settings.unix_socket
    files = settings.certificate_files
    certificate = None if files is None else Certificate(files)
    async with contextlib.AsyncExitStack() as closing:
        try:
            listener = (
                bind(settings.hostname, settings.port) if path is None else bind_to_path(path)
            )
        except StartError as error:
            log.warning("nobody can ask how this node is: %s", error)
        else:
            closing.enter_context(listener)
            if path is not None:
                closing.enter_context(removed_at_end(path, lambda: False))
            app = outside(gate, settings)
            http = await closing.enter_async_context(
                answering(gate, listener, app=app, certificate=certificate)
            )
            await http.begin()
        yield

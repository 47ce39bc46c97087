"""What `serve` does on a node that does not lead: it joins the one that does."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from tgi_async.cluster.fingerprint import fingerprint
from tgi_async.cluster.member import Member, ModelHere
from tgi_async.cluster.secret import keys_of, read_secret
from tgi_async.cluster.topology import Topology
from tgi_async.diagnosis import Diagnosis
from tgi_async.listener import on_signals
from tgi_async.preparation import prepare
from tgi_async.serving import Commands
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
            prepared = await prepare(settings, commands.prepare, scratch, None)
            model = ModelHere(str(prepared.path), prepared.speculator, fingerprint(prepared.path))
            await Member(
                topology,
                keys,
                n_ranks // topology.nnodes,
                model,
                Path(scratch),
                commands.worker,
            ).run()
            return 0
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("%s: this node has left", stopped[0])
        return 0

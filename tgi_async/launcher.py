"""Start the server from its settings, serve, and stop.

It listens first, so that a client that asks gets the phase of the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket

import uvloop

from tgi_async.binding import bind, bind_to_path, removed_at_end
from tgi_async.certificate import Certificate
from tgi_async.cluster.leader import Cluster, leading
from tgi_async.cluster.secret import keys_of, read_secret
from tgi_async.cluster.topology import Topology, topology
from tgi_async.diagnosis import Diagnosis
from tgi_async.errors import StartError
from tgi_async.joining import join
from tgi_async.listener import answering, on_signals
from tgi_async.serving import COMMANDS, Commands, Front, gate_for, outside, serving
from tgi_async.settings import Settings
from tgi_async.temporary import PrivateFolder
from tgi_async.upgrade.parent import Parent
from tgi_async.upgrade.process import EARLY, SIGNALS
from tgi_async.upgrade.terminal import Terminal
from tgi_async.upgrade.upgrade import Upgrade

log = logging.getLogger(__name__)


def serve(settings: Settings, *, commands: Commands = COMMANDS) -> int:
    """Serve until a signal stops it. Return the exit status; raises StartError.

    Where another server took over meanwhile, this process becomes its keeper, and returns when that
    one ends.
    """
    where = topology(settings, os.environ)
    if where is not None and settings.standby:
        raise StartError(
            f"--standby is for one node, and {where.source} says that there are {where.nnodes}. "
            "Leave it out."
        )
    if where is not None and where.node_rank:
        return uvloop.run(join(settings, where, commands))
    status, upgrade = uvloop.run(_serve(settings, commands, where))
    if upgrade is None or not upgrade.handed_over:
        return status
    gc.unfreeze()
    gc.collect()
    return upgrade.keep()


async def _serve(
    settings: Settings, commands: Commands, where: Topology | None
) -> tuple[int, Upgrade | None]:
    main = asyncio.current_task()
    assert main is not None
    stopped: list[str] = []
    upgrade: Upgrade | None = None

    def stop(name: str) -> None:
        if not stopped:
            stopped.append(name)
            main.cancel()

    def on_signal(name: str) -> None:
        if where is not None and name == "SIGHUP":
            log.warning("SIGHUP: a server over several nodes is not exchanged while it serves")
        elif upgrade is None or not upgrade.takes(name):
            stop(name)

    on_signals(on_signal)
    diagnosis = Diagnosis()
    diagnosis.follow()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
    try:
        # Before anything slow, so that a port in use is known at once.
        parent = Parent.found()
        files = settings.certificate_files
        certificate = None if files is None else Certificate(files)
        with contextlib.ExitStack() as closing:
            listener = closing.enter_context(_listening(settings, parent))
            upgrade = Upgrade(listener, parent, Terminal())
            if settings.unix_socket is not None:
                is_followed = upgrade.is_followed
                closing.enter_context(removed_at_end(settings.unix_socket, is_followed))
            upgrade.follow(lambda: None, lambda: stop("what started this server is gone"))
            scratch = closing.enter_context(PrivateFolder())
            gate = gate_for(settings)
            address = _address(listener, secure=certificate is not None)
            app = outside(gate, settings)
            async with (
                _leading(settings, where) as cluster,
                answering(gate, listener, app=app, certificate=certificate) as http,
            ):
                if parent is None:
                    await http.begin()
                    log.info("listening on %s; not ready yet", settings.unix_socket or address)
                front = Front(http, upgrade)
                async with serving(
                    gate,
                    address,
                    settings,
                    scratch,
                    front=front,
                    commands=commands,
                    cluster=cluster,
                ) as engine:
                    diagnosis.state = engine.described
                    status = await http.until_stopped(
                        engine,
                        upgrade,
                        delay=settings.shutdown_delay,
                        grace=settings.graceful_termination_timeout,
                    )
            await upgrade.end()
            if upgrade.handed_over:
                # Signals wait until the keeper takes them: the loop's handlers end with it.
                signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGCHLD})
            return status, upgrade
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("%s: stopped before it was ready", stopped[0])
        return 0, upgrade


def _leading(
    settings: Settings, where: Topology | None
) -> contextlib.AbstractAsyncContextManager[Cluster | None]:
    """Have the port for the other nodes, where there are any. Raises StartError."""
    if where is None:
        return contextlib.nullcontext()
    return leading(where, keys_of(read_secret(settings.cluster_secret_file, os.environ)))


def _listening(
    settings: Settings, parent: Parent | None
) -> contextlib.AbstractContextManager[socket.socket]:
    """Return the socket to answer at: a new one, or that of the server before this one."""
    if parent is not None:
        return contextlib.closing(parent.listener)
    if settings.unix_socket is not None:
        return contextlib.closing(bind_to_path(settings.unix_socket))
    return contextlib.closing(bind(settings.hostname, settings.port))


def _address(listener: socket.socket, *, secure: bool) -> str:
    """Return the URL under which this machine reaches the server."""
    scheme = "https" if secure else "http"
    if listener.family == socket.AF_UNIX:
        return f"{scheme}://localhost"
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"

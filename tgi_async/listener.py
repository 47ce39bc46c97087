"""The HTTP side of the server's life: bind, answer, drain, stop.

The first SIGTERM or SIGINT drains: no new connection is taken, live requests go on. The second one,
or the end of the grace, stops at once: live requests are told so, and connections that do not take
even that are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from tgi_async.connection import Connection
from tgi_async.engine import Engine
from tgi_async.errors import StartError

log = logging.getLogger(__name__)

BACKLOG = 2048
LAST_REPLY_SECONDS = 1.0
"""What connections get to take the last reply, once their requests were ended."""


class _Server(uvicorn.Server):
    """uvicorn, with signals left to `listen`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def on_signals(handle: Callable[[str], None]) -> None:
    """Call `handle` with the name of each SIGTERM and SIGINT from now on."""
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, handle, one.name)


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address that accepts nobody yet. Raises StartError where it is taken."""
    with contextlib.ExitStack() as undo:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except (OSError, UnicodeError) as error:
            raise _taken(host, port, error) from error
        undo.pop_all()
    return listener


def open_queue(listener: socket.socket) -> None:
    """Let clients connect; they wait until `listen` answers.

    Raises StartError if another process did so at the same address first.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _taken(host, port, error) from error


async def listen(app: Any, engine: Engine, listener: socket.socket, grace: float) -> int:
    """Answer requests until a signal, or until the workers can not be brought back.

    Returns the exit status: 0 after a signal, else 1.
    """
    config = uvicorn.Config(
        app,
        loop="none",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
    )
    server = _Server(config)
    asked, insisted = asyncio.Event(), asyncio.Event()

    def stop(name: str) -> None:
        if asked.is_set():
            log.warning("%s again: stopping now", name)
            insisted.set()
            return
        log.info("%s: no new requests; live ones get up to %g s", name, grace)
        engine.refuse()
        server.should_exit = True
        asked.set()

    on_signals(stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    draining, forcing = asyncio.create_task(asked.wait()), asyncio.create_task(insisted.wait())
    try:
        await _first(serving, engine.failed, draining)
        if draining.done():
            await _first(serving, engine.failed, forcing, within=grace)
    finally:
        draining.cancel()
        forcing.cancel()
    lost = engine.failed.done()
    if lost:
        log.error("stopping: the model worker is gone for good")
    if not serving.done():
        server.should_exit = True
        # Whoever still waits is told why it gets no more.
        await engine.stop(0)
        await _first(serving, within=LAST_REPLY_SECONDS)
    if not serving.done():
        await _cut(server, serving)
    await serving
    return 0 if asked.is_set() and not lost else 1


async def _first(*awaited: asyncio.Future[Any], within: float | None = None) -> None:
    await asyncio.wait(awaited, timeout=within, return_when=asyncio.FIRST_COMPLETED)


async def _cut(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """Leave the connections that do not end, and the requests that hang on them."""
    # uvicorn shows a traceback for each request cut off.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    tasks = list(server.server_state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_REPLY_SECONDS)
    server.force_exit = True
    await _first(serving)
    # What uvicorn leaves out when it is forced.
    await server.lifespan.shutdown()


def _taken(host: str, port: int, error: Exception) -> StartError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StartError(
        f"Can not listen on {host} port {port}: {reason}. Choose another with --hostname and "
        "--port."
    )

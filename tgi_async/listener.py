"""The HTTP side of the server's life: bind, answer, drain, stop.

SIGTERM begins with a delay in which load balancers learn from `/health` to look elsewhere, while
requests are still taken. Then, or at the first SIGINT or SIGHUP, the server drains: no new
connection is taken, live requests go on. The next signal, or the end of the grace, stops it at
once: live requests end with an error, and connections that do not take even that are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tgi_async.api.gate import Gate
from tgi_async.certificate import Certificate
from tgi_async.connection import Connection
from tgi_async.engine import Engine
from tgi_async.errors import StartError
from tgi_async.handshake import secured

log = logging.getLogger(__name__)

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 620
"""How long an idle connection is kept: longer than load balancers keep theirs (60 to 600 seconds),
which would otherwise send a request just when it is closed."""
MOST_CONNECTIONS = 65_536
SPARE_FILES = 256
"""Open files besides connections: sockets to workers, pipes of processes, models' files."""
LAST_REPLY_SECONDS = 1.0
"""Time that connections get to take the last reply, once their requests were ended."""


class _Server(uvicorn.Server):
    """uvicorn, with signals left to `answer_until_stopped`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


class Answering:
    """The HTTP server while it answers."""

    def __init__(self, gate: Gate, server: _Server, serving: asyncio.Task[None]) -> None:
        self._gate = gate
        self._server = server
        self._serving = serving

    async def until_stopped(self, engine: Engine, *, delay: float, grace: float) -> int:
        """Answer until a signal stops it, or until the workers cannot be restarted.

        Returns the exit status: 0 after a signal, else 1.
        """
        stop = _Stop(lambda: self._leave(engine), lambda: self._drain(engine), delay, grace)
        on_signals(stop.on_signal)
        draining = asyncio.create_task(stop.asked.wait())
        forcing = asyncio.create_task(stop.insisted.wait())
        try:
            await _first(self._serving, engine.failed, draining)
            if draining.done():
                await _first(self._serving, engine.failed, forcing, within=grace)
        finally:
            stop.cancel()
            draining.cancel()
            forcing.cancel()
        lost = engine.failed.done()
        if lost:
            log.error("stopping: the model worker is gone for good")
        if not self._serving.done():
            self._server.should_exit = True
            # Clients that still wait get an error that says why.
            await engine.stop(0)
        await self.close()
        return 0 if stop.asked.is_set() and not lost else 1

    async def close(self) -> None:
        """Answer no more; connections that do not end soon are cut."""
        self._server.should_exit = True
        if not self._serving.done():
            await _first(self._serving, within=LAST_REPLY_SECONDS)
        if not self._serving.done():
            await self._cut()
        await self._serving

    def _leave(self, engine: Engine) -> None:
        engine.retire()
        self._gate.close_connections()

    def _drain(self, engine: Engine) -> None:
        engine.retire()
        self._server.should_exit = True

    async def _cut(self) -> None:
        """Drop the connections that do not end, with their requests."""
        # uvicorn shows a traceback for each request cut off.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        tasks = list(self._server.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_REPLY_SECONDS)
        self._server.force_exit = True
        await _first(self._serving)


class _Stop:
    """The phases of stopping that signals ask for, one after another: leave, drain, stop at
    once."""

    def __init__(
        self, leave: Callable[[], None], drain: Callable[[], None], delay: float, grace: float
    ) -> None:
        self._leave, self._drain_now = leave, drain
        self._delay, self._grace = delay, grace
        self._leaving: asyncio.TimerHandle | None = None
        self.asked, self.insisted = asyncio.Event(), asyncio.Event()

    def on_signal(self, name: str) -> None:
        if self.asked.is_set():
            log.warning("%s again: stopping now", name)
            self.insisted.set()
        elif name == "SIGTERM" and self._delay and self._leaving is None:
            log.info("%s: not ready any more, but taking requests for %g s", name, self._delay)
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(self._delay, self._drain, f"{self._delay:g} s later")
            self._leave()
        else:
            self._drain(name)

    def cancel(self) -> None:
        """Cancel a delay that has not ended."""
        if self._leaving is not None:
            self._leaving.cancel()

    def _drain(self, reason: str) -> None:
        self.cancel()
        log.info("%s: no new requests; requests in progress get up to %g s", reason, self._grace)
        self._drain_now()
        self.asked.set()


@contextlib.asynccontextmanager
async def answering(
    gate: Gate,
    listener: socket.socket,
    *,
    app: ASGIApp | None = None,
    certificate: Certificate | None = None,
) -> AsyncIterator[Answering]:
    """Have `gate` answer requests at this socket from now until the end of the context.

    `app` is what is around `gate`, if anything. With a certificate, clients have to speak TLS.
    """
    http: Any = Connection if certificate is None else secured(certificate)
    config = uvicorn.Config(
        app or gate,
        loop="none",
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        limit_concurrency=_most_connections(),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _first(serving, up := asyncio.create_task(server.up.wait()))
    up.cancel()
    if serving.done():
        serving.result()
    following = None if certificate is None else asyncio.create_task(certificate.follow())
    found = Answering(gate, server, serving)
    try:
        yield found
    finally:
        if following is not None:
            following.cancel()
        await found.close()


def on_signals(handle: Callable[[str], None]) -> None:
    """Call `handle` with the name of each SIGTERM, SIGINT and SIGHUP from now on.

    SIGHUP comes when a terminal is closed. `nohup` has it ignored, and then it is.
    """
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if one is signal.SIGHUP and signal.getsignal(one) is signal.SIG_IGN:
            continue
        loop.add_signal_handler(one, handle, one.name)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at this address that clients can connect to; they wait to be answered.

    Raises StartError where the address is taken or not this machine's.
    """
    with contextlib.ExitStack() as undo:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise StartError(
                f"Cannot listen on {host} port {port}: {reason}. Choose another with --hostname "
                "and --port."
            ) from error
        undo.pop_all()
    return listener


@contextlib.contextmanager
def bound_to_path(path: str) -> Iterator[socket.socket]:
    """Listen on a Unix socket at this path, which owner and group may use, until the end of the
    context.

    What a server that is gone left there is replaced. Raises StartError where another one listens,
    where something else is, or where none can be.
    """
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        try:
            _remove_stale(path)
            mask = os.umask(0o117)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            own = os.stat(path).st_ino
            listener.listen(BACKLOG)
        except OSError as error:
            raise StartError(
                f"Cannot listen on the Unix socket {path}: {error.strerror or error}. Choose "
                "another path with --unix-socket."
            ) from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == own:
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove a socket on which nobody listens. Raises OSError for one on which somebody does, and
    for what is no socket."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full
    raise OSError(errno.EADDRINUSE, "another server listens there")


def _most_connections() -> int:
    """Return how many connections may be open, after raising the limit of open files as far as
    allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    n_files = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    return max(n_files - SPARE_FILES, n_files // 2)


async def _first(*awaited: asyncio.Future[Any], within: float | None = None) -> None:
    await asyncio.wait(awaited, timeout=within, return_when=asyncio.FIRST_COMPLETED)

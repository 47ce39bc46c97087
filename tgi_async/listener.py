"""The HTTP side of the server's life: answer, drain, stop.

SIGTERM begins with a delay in which load balancers learn from `/health` to look elsewhere, while
requests are still taken. Then, or at the first SIGINT, the server drains: no new connection is
taken, live requests go on. The next signal, or the end of the grace, stops it at once: live
requests end with an error, and connections that do not take even that are cut.

A server whose successor answers at the same socket (`upgrade`) takes no connection either, and
moves its clients there with their next reply. Then it drains, without a limit as long as nobody
waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tgi_async.api.gate import Gate
from tgi_async.binding import BACKLOG
from tgi_async.certificate import Certificate
from tgi_async.connection import Connection
from tgi_async.engine import Engine
from tgi_async.handshake import secured
from tgi_async.upgrade.process import is_exclusive
from tgi_async.upgrade.upgrade import Upgrade
from tgi_async.watchdog import Watchdog

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 620
"""How long an idle connection is kept: longer than load balancers keep theirs (60 to 600 seconds),
which would otherwise send a request just when it is closed."""
MOST_CONNECTIONS = 65_536
SPARE_FILES = 256
"""Open files besides connections: sockets to workers, pipes of processes, models' files."""
MOVE_SECONDS = 10.0
"""How long a server that was followed by another lets a connection be idle, if nobody waits for its
end."""
HURRY_SECONDS = 2.0
"""The same where somebody does."""
LAST_REPLY_SECONDS = 1.0
"""Time that connections get to take the last reply, once their requests were ended."""


class _Server(uvicorn.Server):
    """uvicorn, with signals left to `until_stopped`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    def leave_socket(self) -> None:
        """Take no connection any more; those that are there go on."""
        for server in self.servers:
            server.close()

    def close_idle(self, seconds: float, *, new: bool) -> bool:
        """Close connections that were idle for so long, and with `new` those on which no request
        came in that time. Return whether any is left."""
        longest = asyncio.get_running_loop().time() - seconds
        for one in list(self.server_state.connections):
            if (
                isinstance(one, Connection)
                and one.idle_since is not None
                and one.idle_since <= longest
                and (new or not one.is_new)
            ):
                one.shutdown()
        return bool(self.server_state.connections)


class Answering:
    """The HTTP server, which answers from `begin` on."""

    def __init__(
        self,
        gate: Gate,
        server: _Server,
        listener: socket.socket,
        certificate: Certificate | None,
    ) -> None:
        self._gate = gate
        self._server = server
        self._listener = listener
        self._certificate = certificate
        self._watchdog: Watchdog | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._serving is not None

    async def begin(self) -> None:
        """Take connections from now on."""
        self._watchdog = Watchdog(self._listener, self._certificate)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        await _first(self._serving, up := asyncio.create_task(self._server.up.wait()))
        up.cancel()
        if self._serving.done():
            self._serving.result()

    async def until_stopped(
        self, engine: Engine, upgrade: Upgrade, *, delay: float, grace: float
    ) -> int:
        """Answer until a signal or a successor stops it, or until the workers cannot be restarted.

        Returns the exit status: 0 after a signal, else 1.
        """
        assert self._serving is not None
        stop = _Stop(lambda: self._leave(engine), lambda: self._drain(engine), delay, grace)
        moving: list[asyncio.Task[None]] = []

        def on_signal(name: str) -> None:
            if not upgrade.takes(name):
                stop.on_signal(name)

        def on_parent_gone() -> None:
            upgrade.stop("SIGTERM")
            stop.on_signal("the process that started this server is gone")

        def retire() -> None:
            # Where new requests wait for this server's end, it ends soon.
            limit = grace if is_exclusive(upgrade.device) else None
            moving.append(asyncio.create_task(self._move(stop, limit)))

        on_signals(on_signal)
        upgrade.follow(retire, on_parent_gone)
        forcing = asyncio.create_task(stop.insisted.wait())
        try:
            await _first(self._serving, engine.failed, forcing)
        finally:
            stop.cancel()
            forcing.cancel()
            for one in moving:
                one.cancel()
        lost = engine.failed.done()
        if lost:
            log.error("stopping: the model worker is gone for good")
        if not self._serving.done():
            self._server.should_exit = True
            # Clients that still wait get an error that says why.
            await engine.stop(0)
        await self.close()
        return 0 if stop.draining and not lost else 1

    async def close(self) -> None:
        """Answer no more; connections that do not end soon are cut."""
        self._server.should_exit = True
        if self._serving is None or self._watchdog is None:
            return
        self._watchdog.end()
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
        self._leave_socket()
        self._server.should_exit = True

    async def _move(self, stop: _Stop, grace: float | None) -> None:
        """Leave the clients to another server, which answers at this socket already.

        Those that have connected here are answered, and asked to close the connection. One on which
        a request may be on its way is not closed: the client could not know whether it was read.
        """
        limit = "as long as they need" if grace is None else f"up to {grace:g} s"
        log.info("another server has the socket; requests in progress get %s", limit)
        stop.moving = True
        self._leave_socket()
        self._server.leave_socket()
        self._gate.close_connections()
        loop = asyncio.get_running_loop()
        until = None if grace is None else loop.time() + grace
        hurry = until is not None
        while self._server.close_idle(HURRY_SECONDS if hurry else MOVE_SECONDS, new=hurry):
            if until is not None and loop.time() > until:
                stop.insist("the grace is over")
                return
            await asyncio.sleep(0.1)
        stop.moved()

    def _leave_socket(self) -> None:
        if self._watchdog is not None:
            self._watchdog.leave_socket()

    async def _cut(self) -> None:
        """Drop the connections that do not end, with their requests."""
        assert self._serving is not None
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
        self._leave, self._drain = leave, drain
        self._delay, self._grace = delay, grace
        self._leaving: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        """Stops at once when the grace is over; None before it begins."""
        self.moving = False
        """Whether another server has the clients."""
        self.draining = False
        self.insisted = asyncio.Event()

    def on_signal(self, name: str) -> None:
        if self._ending is not None:
            self.insist(f"{name} again")
        elif name == "SIGTERM" and self._delay and self._leaving is None and not self.moving:
            log.info("%s: not ready any more, but taking requests for %g s", name, self._delay)
            loop = asyncio.get_running_loop()
            reason = f"{self._delay:g} s later"
            self._leaving = loop.call_later(self._delay, self._begin, reason)
            self._leave()
        else:
            self._begin(name)

    def _begin(self, reason: str) -> None:
        """Drain, for the grace."""
        self.cancel()
        self.draining = True
        log.info("%s: no new requests; requests in progress get up to %g s", reason, self._grace)
        self._drain()
        loop = asyncio.get_running_loop()
        self._ending = loop.call_later(self._grace, self.insist, f"{self._grace:g} s later")

    def moved(self) -> None:
        """Note that the last client has left."""
        if not self.draining:
            self.draining = True
            self._drain()

    def insist(self, reason: str) -> None:
        """Stop at once."""
        log.warning("%s: stopping now; requests that are still in progress fail", reason)
        self.draining = True
        self.insisted.set()

    def cancel(self) -> None:
        """Cancel what has not come yet: the end of the delay, the end of the grace."""
        for one in (self._leaving, self._ending):
            if one is not None:
                one.cancel()


@contextlib.asynccontextmanager
async def answering(
    gate: Gate,
    listener: socket.socket,
    *,
    app: ASGIApp | None = None,
    certificate: Certificate | None = None,
) -> AsyncIterator[Answering]:
    """Have `gate` answer requests at this socket, from `begin` until the end of the context.

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
    following = None if certificate is None else asyncio.create_task(certificate.follow())
    found = Answering(gate, _Server(config), listener, certificate)
    try:
        yield found
    finally:
        if following is not None:
            following.cancel()
        await found.close()


def on_signals(handle: Callable[[str], None]) -> None:
    """Call `handle` with the name of each SIGTERM, SIGINT and SIGHUP from now on.

    `nohup` has SIGHUP ignored, and then it is.
    """
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if one is signal.SIGHUP and signal.getsignal(one) is signal.SIG_IGN:
            continue
        loop.add_signal_handler(one, handle, one.name)


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

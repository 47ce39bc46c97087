"""Start the server that is to follow this one, and leave it the clients.

SIGHUP starts it: the same command, on the same socket, with whatever code is on the disk by then.
This server goes on as it is until the new one says that it answers; if the new one ends before, it
was no more than a line in the log. Where both models have no room on a device, the new one says
instead that it holds requests, and loads its model once this one is gone.

**The process stays.** Service managers, containers and shells know a server by its process, and
take it for ended when that ends. So this process never ends before the new one: when its last
stream is over, it becomes the new one's `keeper`. A server that has a parent leaves upgrades to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from tgi_async.upgrade import process
from tgi_async.upgrade.keeper import Keeper
from tgi_async.upgrade.parent import Parent
from tgi_async.upgrade.process import Child, how_it_ended, is_exclusive
from tgi_async.upgrade.terminal import Terminal

log = logging.getLogger(__name__)

GIVE_UP_SECONDS = 5.0
"""How long a new server that is not wanted any more may take to end, before it is killed."""


class Upgrade:
    """What follows this server, and what came before it."""

    def __init__(
        self,
        listener: socket.socket,
        parent: Parent | None,
        terminal: Terminal,
    ) -> None:
        self.parent = parent
        self.device = ""
        """Where the model of this server is; empty until it is ready."""
        self.handed_over = False
        """Whether a server that this one started has the clients now."""
        self._retire: Callable[[], None] = lambda: None
        self._retired = False
        self._listener = listener
        self._kept: socket.socket | None = None
        """The socket, for further servers; only while there is a child."""
        self._terminal = terminal
        self._child: Child | None = None
        self._buried: asyncio.Task[None] | None = None
        self._stopping = False

    def follow(self, on_retire: Callable[[], None], on_parent_gone: Callable[[], None]) -> None:
        """Call `on_retire` when another server has the clients, whoever started that, and
        `on_parent_gone` when what started this one is gone."""

        def retire() -> None:
            self._retired = True
            on_retire()

        self._retire = retire
        if self.parent is not None:
            self.parent.follow(retire, on_parent_gone)

    def is_ready(self, device: str) -> None:
        """Note that this server answers, with its model on this device, and tell its parent."""
        self.device = device
        if self.parent is not None:
            self.parent.ready(device)

    def is_followed(self) -> bool:
        """Return whether another server goes on with the socket when this one ends."""
        return self._retired

    def takes(self, name: str) -> bool:
        """Handle a signal. Return whether it asks for nothing else: an upgrade, begun or refused.

        Any other is passed on to the server that was started.
        """
        if name == "SIGHUP" and not self._terminal.is_gone:
            self._asked()
            return True
        self.stop("SIGTERM" if name == "SIGHUP" else name)
        return False

    def stop(self, name: str) -> None:
        """Stop the server that was started, too, as this signal does."""
        self._stopping = True
        self._close_kept()
        if self._child is not None:
            self._child.signal(signal.Signals[name])

    def _asked(self) -> None:
        if self.parent is not None:
            self.parent.upgrade()
        elif self._stopping:
            log.warning("SIGHUP: no upgrade, as this server is stopping")
        elif self._child is not None:
            log.warning(
                "SIGHUP: an upgrade is under way, and goes on; another one is possible once this "
                "server is gone. To give it up, end process %d",
                self._child.pid,
            )
        elif not self.device:
            log.warning("SIGHUP: no upgrade, as this server is not ready itself; it goes on")
        else:
            self._begin()

    def _begin(self) -> None:
        waits = is_exclusive(self.device)
        self._kept = self._listener.dup()
        try:
            child = process.start(command(), self._kept, waits=waits)
        except OSError as error:
            log.error("SIGHUP: the new server cannot be started: %s; this one goes on", error)
            self._close_kept()
            return
        self._child = child
        log.info(
            "SIGHUP: a new server starts as process %d; this one goes on until it %s",
            child.pid,
            "can take connections" if waits else "is ready",
        )
        asyncio.get_running_loop().add_reader(child.channel, self._read, child)

    def _read(self, child: Child) -> None:
        try:
            message = child.channel.recv(process.MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        kind, _, device = message.partition(b" ")
        if kind == process.READY:
            child.device = device.decode()
        if not message:
            self._lost(child)
        elif kind in (process.READY, process.HOLDING) and not self.handed_over:
            if self._stopping:
                # It may have clients already, and has been told to stop.
                self.handed_over = True
                return
            if self._terminal.is_gone:
                # A shell that is about to go sends SIGHUP while the terminal is still there.
                log.info("the terminal is gone: both servers stop")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self.handed_over = True
            log.info(
                "process %d %s: no new connections here, requests in progress go on",
                child.pid,
                "answers" if kind == process.READY else "holds new requests until this one ends",
            )
            self._retire()
        elif kind == process.UPGRADE:
            self._asked()

    def _lost(self, child: Child) -> None:
        asyncio.get_running_loop().remove_reader(child.channel)
        if self.handed_over:
            if not self._stopping:
                log.error(
                    "process %d, which had taken over, is gone: this server ends with it, once its "
                    "requests in progress have ended",
                    child.pid,
                )
            self._close_kept()
            return
        self._close_kept()
        self._buried = asyncio.create_task(self._bury(child))

    async def _bury(self, child: Child) -> None:
        """Say how a server ended that was never ready."""
        _, status = await asyncio.to_thread(os.waitpid, child.pid, 0)
        child.channel.close()
        self._child = None
        if not self._stopping:
            log.error(
                "the new server %s before it was ready, its reason is above; this one goes on as "
                "if there had been no SIGHUP",
                how_it_ended(status),
            )

    async def end(self) -> None:
        """End a server that was started and is not wanted any more, as this one stops."""
        if self._child is None or self.handed_over:
            return
        if self._buried is not None:
            await self._buried
            return
        child = self._child
        asyncio.get_running_loop().remove_reader(child.channel)
        child.channel.close()  # which it takes for a signal
        ended = asyncio.create_task(asyncio.to_thread(os.waitpid, child.pid, 0))
        await asyncio.wait({ended}, timeout=GIVE_UP_SECONDS)
        if not ended.done():
            child.signal(signal.SIGKILL)
            await ended

    def _close_kept(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def keep(self) -> int:
        """Keep the server that has the clients, once nothing else of this one is left. Return the
        exit status of the last server.

        The keeper's code was loaded with this server's: what is on the disk may be anything by now.
        """
        assert self._child is not None
        log.info(
            "nothing is in progress here: process %d stays, and keeps process %d",
            os.getpid(),
            self._child.pid,
        )
        keeper = Keeper(command(), self._child, self._kept, self._terminal)
        return keeper.run()


def command() -> list[str]:
    """Return the command that started this process."""
    return [sys.executable, *sys.orig_argv[1:]]

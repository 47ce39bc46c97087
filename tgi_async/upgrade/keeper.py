"""What an upgraded server becomes: the process that was started stays, and keeps the others.

It has the listening socket without answering at it, and the servers as its children: the current
one, one that leaves, one that starts. It passes signals on, upgrades at SIGHUP, and ends as the
current one ends, once the others have. Nothing but what `process` has is said between them, so that
the code of a keeper may be years older than that of its servers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
from collections.abc import Sequence

from tgi_async.upgrade import process
from tgi_async.upgrade.process import Child, how_it_ended, is_exclusive
from tgi_async.upgrade.terminal import Terminal

log = logging.getLogger(__name__)


class Keeper:
    """Keeps servers that `command` starts; `current` is the first of them. `listener` is None where
    it stops already."""

    def __init__(
        self,
        command: Sequence[str],
        current: Child,
        listener: socket.socket | None,
        terminal: Terminal,
    ) -> None:
        self._command = command
        self._current = current
        self._leaving: Child | None = None
        self._next: Child | None = None
        self._listener = listener
        self._terminal = terminal
        self._stopping = listener is None
        self._status: int | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Keep them until the current one ends. Return its exit status, as a shell has it.

        SIGNALS and SIGCHLD may be blocked before: they are taken from now on.
        """
        signals, wakeup = socket.socketpair()
        for one in (signals, wakeup):
            one.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self._selector.register(signals, selectors.EVENT_READ, None)
        handled = *process.SIGNALS, signal.SIGCHLD
        for number in handled:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._watch(self._current)
        self._current.say(process.FREED)
        self._reap()
        while self._status is None or self._leaving is not None or self._next is not None:
            # What a server said before a signal came is read before.
            for key, _ in sorted(self._selector.select(), key=lambda one: one[0].data is None):
                if key.data is not None:
                    self._read(key.data)
                    continue
                with contextlib.suppress(BlockingIOError):
                    for received in signals.recv(4096):
                        self._on_signal(received)
        return self._status

    def _watch(self, child: Child) -> None:
        self._selector.register(child.channel, selectors.EVENT_READ, child)

    def _children(self) -> list[Child]:
        current = self._current if self._status is None else None
        return [one for one in (current, self._leaving, self._next) if one is not None]

    # -- signals --------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP and not self._terminal.is_gone:
            self._upgrade()
        elif number == signal.SIGUSR1:
            for child in self._children():
                child.signal(number)
        else:
            self._stop(signal.SIGTERM if number == signal.SIGHUP else number)

    def _stop(self, number: int) -> None:
        """Pass the signal on; the current server logs it."""
        self._stopping = True
        self._close_listener()
        for child in self._children():
            child.signal(number)

    def _close_listener(self) -> None:
        """Have clients refused once no server answers them, instead of waiting for none."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _upgrade(self) -> None:
        if self._listener is None or self._stopping:
            log.warning("SIGHUP: no upgrade, as the server is stopping")
        elif self._next is not None or self._leaving is not None:
            under_way = self._next or self._leaving
            assert under_way is not None
            log.warning(
                "SIGHUP: an upgrade is under way, and goes on; another one is possible once "
                "process %d has %s",
                under_way.pid,
                "ended, or taken over" if under_way is self._next else "ended",
            )
        elif not self._current.device:
            log.warning("SIGHUP: no upgrade, as process %d is not ready yet", self._current.pid)
        else:
            waits = is_exclusive(self._current.device)
            try:
                self._next = process.start(self._command, self._listener, waits=waits)
            except OSError as error:
                log.error(
                    "SIGHUP: the new server cannot be started: %s; process %d goes on",
                    error,
                    self._current.pid,
                )
                return
            self._watch(self._next)
            log.info(
                "SIGHUP: a new server starts as process %d; process %d goes on until it %s",
                self._next.pid,
                self._current.pid,
                "can take connections" if waits else "is ready",
            )

    # -- what servers say -----------------------------------------------------------------------

    def _read(self, child: Child) -> None:
        try:
            message = child.channel.recv(process.MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        kind, _, device = message.partition(b" ")
        if not message:  # it is about to end
            self._selector.unregister(child.channel)
        elif kind == process.UPGRADE:
            self._upgrade()
        else:
            if kind == process.READY:
                child.device = device.decode()
            if child is self._next and not self._stopping:
                self._promote(child)

    def _promote(self, child: Child) -> None:
        before, self._leaving = self._current, self._current
        self._current, self._next = child, None
        log.info("process %d has taken over from process %d", child.pid, before.pid)
        before.say(process.RETIRE)

    # -- servers that end -----------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of all children that have ended; as process 1 those of others, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in self._children():
                if child.pid == pid:
                    self._ended(child, status)

    def _ended(self, child: Child, status: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.channel)
        child.channel.close()
        how = how_it_ended(status)
        if child is self._current:
            self._current_ended(status)
        elif child is self._leaving:
            self._leaving = None
            log.log(
                logging.ERROR if status else logging.INFO,
                "process %d, from before the upgrade, %s",
                child.pid,
                how,
            )
            self._current.say(process.FREED)
        else:
            self._next = None
            if not self._stopping:
                log.error(
                    "the new server %s before it was ready, its reason is above; process %d goes "
                    "on as if there had been no SIGHUP",
                    how,
                    self._current.pid,
                )

    def _current_ended(self, status: int) -> None:
        pid, how = self._current.pid, how_it_ended(status)
        if self._next is not None and not self._stopping:
            log.error(
                "process %d, which served, %s: clients wait for process %d, which starts",
                pid,
                how,
                self._next.pid,
            )
            self._current, self._next = self._next, None
            self._current.say(process.FREED)
            return
        code = os.waitstatus_to_exitcode(status)
        self._status = code if code >= 0 else 128 - code
        self._close_listener()
        if not self._stopping:
            log.error("process %d, which served, %s: this is the end of the server", pid, how)

"""A server that another one started to take its place, and what the two say to each other.

Each has one end of a channel that keeps messages apart. The parent is a server, or what stays of
one (`keeper`). An end of the channel that is closed means that the process is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "TGI_ASYNC_UPGRADE"
"""Environment variable with which a server learns what it was handed, as JSON."""

READY = b"ready"
"""To the parent: it answers, and the device is its own. Two words: this one and the device."""
HOLDING = b"holding"
"""To the parent: it takes connections and holds their requests until it gets the device."""
UPGRADE = b"upgrade"
"""To the parent: somebody asked it for an upgrade, which is the parent's to do."""
RETIRE = b"retire"
"""To the child: another one takes its place."""
FREED = b"freed"
"""To the child: the device is free."""
MOST_BYTES = 256
"""Of a message."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Those that a server handles, and that the process it becomes passes on."""

EARLY = (signal.SIGHUP, signal.SIGUSR1)
"""Those that ask a server for something, and would end one that does not handle them yet. They wait
until it does."""


@dataclass(slots=True)
class Child:
    """A server that this process started."""

    pid: int
    channel: socket.socket
    device: str = ""
    """Where its model is, once it is ready."""

    def say(self, message: bytes) -> None:
        """Send a message; one that is gone gets none."""
        with contextlib.suppress(OSError):
            self.channel.send(message)

    def signal(self, number: int) -> None:
        """Send a signal; one that is gone gets none.

        SIGINT ends one that is not ready as SIGTERM does, which Python does not tell of by a
        traceback.
        """
        if number == signal.SIGINT and not self.device:
            number = signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(command: Sequence[str], listener: socket.socket, *, waits: bool) -> Child:
    """Start a server that answers at this socket. With `waits` it holds requests until `FREED`.

    It is in a session of its own, so that a Ctrl-C in the terminal reaches its parent alone. Raises
    OSError where the command cannot be started.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    with there, contextlib.ExitStack() as closing:
        # Only these two are inherited, and only by this process.
        given = [os.dup(one.fileno()) for one in (listener, there)]
        for descriptor in given:
            closing.callback(os.close, descriptor)
            os.set_inheritable(descriptor, True)
        handed = {"listener": given[0], "channel": given[1], "waits": waits}
        try:
            pid = os.posix_spawn(
                command[0],
                list(command),
                {**os.environ, VARIABLE: json.dumps(handed)},
                setsid=True,
                setsigmask=EARLY,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError:
            here.close()
            raise
    return Child(pid, here)


def is_exclusive(device: str) -> bool:
    """Return whether a device has no room for the models of two servers."""
    return "cuda" in device


def how_it_ended(status: int) -> str:
    """Return what `os.waitpid` says of a process, in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

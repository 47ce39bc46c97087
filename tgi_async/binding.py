"""Where the server listens: a socket at an address, or at a path."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator

from tgi_async.errors import StartError

BACKLOG = 2048
"""Connections that may wait to be taken."""


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
def removed_at_end(path: str, is_followed: Callable[[], bool]) -> Iterator[None]:
    """Remove the Unix socket that is at this path now at the end of the context, unless another
    server goes on with it, or has put another there."""
    own = os.stat(path).st_ino
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if not is_followed() and os.stat(path).st_ino == own:
                os.unlink(path)


def bind_to_path(path: str) -> socket.socket:
    """Return a Unix socket at this path, which owner and group may use.

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
            listener.listen(BACKLOG)
        except OSError as error:
            raise StartError(
                f"Cannot listen on the Unix socket {path}: {error.strerror or error}. Choose "
                "another path with --unix-socket."
            ) from error
        undo.pop_all()
    return listener


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

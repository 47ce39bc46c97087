"""Answer connections in place of the event loop, many at once.

This runs in a thread of its own, without an event loop. Each connection has one request answered,
and `CLIENT_SECONDS` for all of it, so that who is silent or slow holds up nobody. Of more than
`MOST_CONNECTIONS` at once the oldest is dropped: a probe sends its request when it connects.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import NamedTuple, TypeVar

from tgi_async.certificate import Certificate

T = TypeVar("T")
Reply = Callable[[bytes], bytes]

CLIENT_SECONDS = 5.0
"""How long a connection may take for its handshake, its request, and to read the reply."""
MOST_CONNECTIONS = 128
"""Connections at once, each with an open file: fewer than are spared of the limit of these."""
MOST_HEAD_BYTES = 16_384
FAILED_SECONDS = 0.25
"""How long no connection is taken after one could not be, for want of open files or memory."""
CLOSED = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
"""What accept says of a socket on which nobody listens any more."""


class _Talk(NamedTuple):
    """A connection, and what it waits for."""

    steps: Generator[int, None, None]
    events: int
    deadline: float


class StandIn:
    """Answers connections to `listener` with what `reply` makes of the head of a request."""

    def __init__(
        self, listener: socket.socket, certificate: Certificate | None, reply: Reply
    ) -> None:
        self._listener = listener
        self._certificate = certificate
        self._reply = reply
        self._talks: dict[int, _Talk] = {}
        """By file descriptor, the oldest first."""
        self._takes_from = 0.0
        self.is_closed = False
        """Whether nobody listens at the socket any more."""

    @property
    def is_talking(self) -> bool:
        """Whether a connection was taken that is not done with."""
        return bool(self._talks)

    def turn(self, seconds: float, *, takes: bool) -> None:
        """Go on with what is ready, waiting up to so many seconds for something; take a new
        connection only with `takes`."""
        now = time.monotonic()
        takes = takes and not self.is_closed and now >= self._takes_from
        poll = select.poll()
        for fd, talk in self._talks.items():
            poll.register(fd, talk.events)
        listening = self._listener.fileno()
        if takes and listening >= 0:
            poll.register(listening, select.POLLIN)
        ready = poll.poll(seconds * 1000)
        for fd, _ in ready:
            if fd in self._talks:
                self._go_on(fd)
        if takes and (listening < 0 or any(fd == listening for fd, _ in ready)):
            self._take()
        now = time.monotonic()
        for fd in [fd for fd, talk in self._talks.items() if talk.deadline <= now]:
            self._drop(fd)

    def close(self) -> None:
        """Drop what is not done with."""
        for fd in list(self._talks):
            self._drop(fd)

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # the loop was faster
        except OSError as error:
            self.is_closed = error.errno in CLOSED
            self._takes_from = time.monotonic() + FAILED_SECONDS
            return
        if len(self._talks) >= MOST_CONNECTIONS:
            self._drop(next(iter(self._talks)))
        fd = connection.fileno()
        deadline = time.monotonic() + CLIENT_SECONDS
        self._talks[fd] = _Talk(self._talk(connection), 0, deadline)
        self._go_on(fd)

    def _go_on(self, fd: int) -> None:
        talk = self._talks[fd]
        try:
            self._talks[fd] = talk._replace(events=next(talk.steps))
        # What a client does wrong is its own affair.
        except (StopIteration, OSError, ValueError):
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._talks.pop(fd).steps.close()

    def _talk(self, connection: socket.socket) -> Generator[int, None, None]:
        """Yield the events of poll without which it does not go on, then close the connection.
        Raises OSError."""
        with contextlib.ExitStack() as closing:
            closing.enter_context(connection)
            connection.setblocking(False)
            if self._certificate is not None:
                secured = self._certificate.context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                closing.enter_context(secured)
                yield from _tried(secured.do_handshake)
                connection = secured
            head = b""
            while b"\r\n\r\n" not in head and len(head) < MOST_HEAD_BYTES:
                more = yield from _tried(partial(connection.recv, 4096))
                if not more:
                    return
                head += more
            rest = memoryview(self._reply(head))
            while rest:
                n_sent = yield from _tried(partial(connection.send, rest), select.POLLOUT)
                rest = rest[n_sent:]
            # To close a socket before all that came is read would take the reply from the client.
            connection.shutdown(socket.SHUT_WR)
            while (yield from _tried(partial(connection.recv, 65_536))):
                yield select.POLLIN


def _tried(act: Callable[[], T], else_: int = select.POLLIN) -> Generator[int, None, T]:
    """Do this once the socket lets it, yielding what it waits for: `else_`, where not TLS knows."""
    while True:
        try:
            return act()
        except BlockingIOError:
            yield else_
        except ssl.SSLWantReadError:
            yield select.POLLIN
        except ssl.SSLWantWriteError:
            yield select.POLLOUT

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tgi_async import stand_in
from tgi_async.binding import bind, bind_to_path
from tgi_async.stand_in import MOST_CONNECTIONS, StandIn

ASK = b"GET /health HTTP/1.1\r\n\r\n"
LONG = b"x" * 30_000_000
"""More than the buffers of two sockets take."""


class Served:
    """A stand-in without a thread: it does what is due at `until`."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        listener.setblocking(False)
        self.of = StandIn(listener, None, self.reply)
        self.text = b"well"
        self.heads: list[bytes] = []
        self._closing = ExitStack()

    def reply(self, head: bytes) -> bytes:
        self.heads.append(head)
        return self.text

    def client(self) -> socket.socket:
        made = self._closing.enter_context(socket.socket(self.listener.family))
        made.connect(self.listener.getsockname())
        made.settimeout(0)
        return made

    def turns(self, n: int, *, takes: bool = True) -> None:
        for _ in range(n):
            self.of.turn(0, takes=takes)

    def read(self, client: socket.socket) -> bytes:
        """All that the client gets. It reads while it is answered."""
        found = b""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.of.turn(0.01, takes=True)
            try:
                while more := client.recv(1 << 20):
                    found += more
                return found
            except BlockingIOError:
                pass
        raise AssertionError(f"{len(found)} bytes, and no end")

    def close(self) -> None:
        self.of.close()
        self._closing.close()
        self.listener.close()


@contextmanager
def serving(listener: socket.socket) -> Iterator[Served]:
    found = Served(listener)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(bind("127.0.0.1", 0)) as found:
        yield found


def test_it_answers_one_behind_many_that_are_silent(served: Served) -> None:
    for _ in range(100):
        served.client()
    asking = served.client()
    asking.send(ASK)
    served.turns(101)
    assert served.read(asking) == b"well"
    assert served.heads == [ASK]


def test_it_answers_at_a_unix_socket(tmp_path: Path) -> None:
    with serving(bind_to_path(str(tmp_path / "s"))) as served:
        asking = served.client()
        asking.send(ASK)
        assert served.read(asking) == b"well"


def test_a_request_may_come_in_pieces(served: Served) -> None:
    asking = served.client()
    for byte in ASK:
        asking.send(bytes([byte]))
        served.turns(2)
    assert served.read(asking) == b"well"
    assert served.heads == [ASK]


def test_who_sends_a_body_reads_the_reply_all_the_same(served: Served) -> None:
    asking = served.client()
    asking.send(ASK + b"x" * 60_000)
    served.turns(3)
    asking.send(b"x" * 60_000)
    assert served.read(asking) == b"well"


def test_a_long_reply_is_sent_as_it_is_read(served: Served) -> None:
    served.text = LONG
    asking = served.client()
    asking.send(ASK)
    assert served.read(asking) == LONG


def test_the_silent_are_dropped_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "CLIENT_SECONDS", 0.0)
    silent = served.client()
    served.turns(2)
    assert silent.recv(1) == b""
    assert not served.of.is_talking


def test_of_too_many_the_oldest_is_dropped(served: Served) -> None:
    clients = [served.client() for _ in range(MOST_CONNECTIONS + 1)]
    served.turns(MOST_CONNECTIONS)
    with pytest.raises(BlockingIOError):
        clients[0].recv(1)
    served.turns(1)
    assert clients[0].recv(1) == b""
    clients[1].send(ASK)
    assert served.read(clients[1]) == b"well"


def test_it_takes_nobody_while_it_is_not_to(served: Served) -> None:
    first, second = served.client(), served.client()
    served.turns(1)
    first.send(ASK)
    second.send(ASK)
    served.turns(4, takes=False)
    assert first.recv(100) == b"well"
    with pytest.raises(BlockingIOError):
        second.recv(100)


class _Failing(socket.socket):
    """A listener that has no file to spare for the next connection."""

    error: int | None = errno.EMFILE

    def accept(self) -> tuple[socket.socket, object]:
        if self.error is not None:
            raise OSError(self.error, "")
        return super().accept()


def test_want_of_files_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "FAILED_SECONDS", 0.0)
    listener = _Failing(fileno=bind("127.0.0.1", 0).detach())
    with serving(listener) as served:
        asking = served.client()
        asking.send(ASK)
        served.turns(3)
        assert not served.heads
        assert not served.of.is_closed
        listener.error = None
        assert served.read(asking) == b"well"


def test_a_closed_socket_is_the_end(served: Served) -> None:
    served.listener.close()
    served.turns(1)
    assert served.of.is_closed

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.helpers.certificates import pair
from tgi_async import watchdog
from tgi_async.binding import bind
from tgi_async.certificate import Certificate, CertificateFiles
from tgi_async.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "STUCK_SECONDS", 0.2)


class Stuck:
    """A loop in a thread of its own, and what frees it."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.listener = bind("127.0.0.1", 0)
        self.listener.setblocking(False)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self._certificate = certificate
        self.freed = threading.Event()
        self.over = threading.Event()
        self.watched = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self.watchdog = Watchdog(self.listener, self._certificate)
        self.watched.set()
        self.freed.wait(30)
        await asyncio.to_thread(self.over.wait)
        self.watchdog.end()


@contextmanager
def stuck(certificate: Certificate | None = None) -> Iterator[Stuck]:
    found = Stuck(certificate)
    found.thread.start()
    found.watched.wait(20)
    try:
        yield found
    finally:
        found.freed.set()
        found.over.set()
        found.thread.join()
        found.listener.close()


def until_logged(caplog: pytest.LogCaptureFixture, text: str) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for line in caplog.messages:
            if text in line:
                return line
        time.sleep(0.01)
    raise AssertionError(f"{text!r} is not in {caplog.messages}")


def test_while_the_loop_is_stuck_health_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with stuck() as server:
        for path in ("/health", "/v1/models", "/"):
            found = httpx.get(f"http://{server.address}{path}", timeout=20)
            assert found.status_code == 503
            assert found.headers["retry-after"] == "5"
            assert "The server has been stuck for" in found.text
        assert httpx.get(f"http://{server.address}/health/live").status_code == 200
        assert httpx.head(f"http://{server.address}/health").text == ""
    # Where it was, to the line.
    assert "self.freed.wait(30)" in until_logged(caplog, "the event loop has been stuck")


def test_a_loop_that_is_stuck_for_long_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LIVE_SECONDS", 0.1)
    with stuck() as server:
        assert httpx.get(f"http://{server.address}/health/live").status_code == 503


def test_a_loop_that_goes_on_answers_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with stuck() as server:
        until_logged(caplog, "has been stuck")
        server.freed.set()
        until_logged(caplog, "the event loop goes on")
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=0.3) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_a_hundred_silent_clients_hold_up_nobody() -> None:
    with stuck() as server, ExitStack() as closing:
        host, port = server.address.split(":")
        for _ in range(100):
            closing.enter_context(socket.create_connection((host, int(port))))
        assert httpx.get(f"http://{server.address}/health/live", timeout=4).status_code == 200


def test_who_was_taken_is_answered_though_the_loop_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    with stuck() as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            # Those that connect later are answered later: so this one was taken.
            assert httpx.get(f"http://{server.address}/health", timeout=20).status_code == 503
            server.freed.set()
            until_logged(caplog, "the event loop goes on")
            connection.sendall(b"GET /health/live HTTP/1.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_who_left_the_socket_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with stuck() as server:
        server.watchdog.leave_socket()
        until_logged(caplog, "has been stuck")
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=0.3) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_it_speaks_tls(tmp_path: Path) -> None:
    files = pair(tmp_path)
    certificate = Certificate(CertificateFiles(files.certificate, files.key))
    with stuck(certificate) as server, httpx.Client(verify=files.client()) as client:
        port = server.address.split(":")[1]
        assert client.get(f"https://localhost:{port}/health").status_code == 503

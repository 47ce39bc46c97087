"""How the server drains and stops, and where it listens."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.doubles.fake_engine_run import DEADLINE
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour
from tests.helpers.certificates import pair
from tests.test_launcher import Serve, serve

__all__ = ["serve"]  # the fixture


def slow() -> Behaviour:
    return Behaviour(step_seconds=0.05)


def texts(events: list[dict[str, Any]]) -> int:
    return sum("token" in event for event in events)


def ask_on(server: FakeServer) -> None:
    """Ask for as long as new connections are taken: a moment after a signal was seen, none is."""
    while True:
        httpx.get(f"{server.url}/info")


def ask(server: FakeServer, body: bytes, length: int) -> socket.socket:
    """A connection on which `body` was sent of a request said to have `length` bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        "POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + body)
    return connection


def test_a_signal_lets_live_streams_end_and_takes_no_new_ones(serve: Serve) -> None:
    server = serve(slow())
    with server.stream(20) as events:
        server.signal(signal.SIGTERM)
        server.until_logged("SIGTERM: no new requests")
        with pytest.raises(httpx.TransportError):
            ask_on(server)
        found = list(events)
    assert texts(found) == 19
    assert found[-1]["generated_text"]
    assert server.ended() == 0


@contextmanager
def hangups(handled: signal.Handlers) -> Iterator[None]:
    """Processes that are started meanwhile inherit this, whatever these tests were started with."""
    before = signal.signal(signal.SIGHUP, handled)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_lets_live_streams_end(serve: Serve) -> None:
    terminal, end = pty.openpty()
    with hangups(signal.SIG_DFL):
        server = serve(slow(), terminal=end)
    os.close(end)
    with server.stream(10) as events:
        os.close(terminal)
        server.until_logged("SIGHUP: no new requests")
        found = list(events)
    assert found[-1]["generated_text"]
    assert server.ended() == 0


def test_a_terminal_that_is_closed_is_nothing_under_nohup(serve: Serve) -> None:
    with hangups(signal.SIG_IGN):
        server = serve(slow())
    with server.stream(10) as events:
        server.signal(signal.SIGHUP)
        assert list(events)[-1]["generated_text"]
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "SIGHUP" not in server.log
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def test_a_second_signal_stops_at_once(serve: Serve) -> None:
    server = serve(slow())
    with server.stream(200) as events:
        server.signal(signal.SIGINT)
        server.until_logged("SIGINT: no new requests")
        server.signal(signal.SIGINT)
        found = list(events)
    assert found[-1]["error_type"] == "incomplete_generation_stream"
    assert texts(found) < 100
    assert server.ended() == 0
    assert "again: stopping now" in server.log


def test_after_the_grace_live_streams_get_an_error(serve: Serve) -> None:
    server = serve(slow(), "--graceful-termination-timeout", "0")
    with server.stream(200) as events:
        server.signal(signal.SIGTERM)
        found = list(events)
    assert found[-1]["error_type"] == "incomplete_generation_stream"
    assert server.ended() == 0


def test_idle_connections_do_not_keep_it(serve: Serve) -> None:
    server = serve(None, "--json-output")
    with httpx.Client(base_url=server.url) as client:
        client.get("/health")
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert all(json.loads(line)["timestamp"] for line in server.log.splitlines())


def test_a_client_that_sends_half_a_body_is_cut_off(serve: Serve) -> None:
    server = serve(None, "-g", "0")
    with ask(server, b'{"inputs"', 100):
        httpx.get(f"{server.url}/health")
        server.signal(signal.SIGTERM)
        assert server.ended() == 0


def test_a_client_that_reads_nothing_is_cut_off(serve: Serve) -> None:
    server = serve(slow(), "-g", "0")
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 200}}).encode()
    with ask(server, body, len(body)) as connection:
        connection.recv(1)
        server.signal(signal.SIGTERM)
        assert server.ended() == 0


def test_a_server_on_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    flags = "--unix-socket", path, "--forwarded-allow-ips", "unix", "--access-log"
    server = serve(None, *flags)
    server.until_logged(f"ready in [\\d.]+ s on {path}\\. Try:")
    assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in server.log
    with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
        reply = client.post("http://localhost/generate", json={"inputs": "Hi"})
        assert reply.status_code == 200
        headers = {"x-forwarded-for": "203.0.113.7"}
        assert client.get("http://localhost/info", headers=headers).status_code == 200
    server.until_logged("unix POST /generate 200 ")
    server.until_logged("203.0.113.7 GET /info 200 ")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert not Path(path).exists()


class TestTls:
    def test_streams_and_a_stop_are_as_without(self, serve: Serve, tmp_path: Path) -> None:
        own = pair(tmp_path)
        flags = "--ssl-certfile", own.certificate, "--ssl-keyfile", own.key
        server = serve(slow(), *flags, "--shutdown-delay", "1")
        server.verify = own.client()
        assert server.url.startswith("https://")
        with (
            httpx.Client(base_url=server.url, verify=own.client()) as idle,
            server.stream(40) as events,
        ):
            assert idle.get("/health").status_code == 200
            began = time.monotonic()
            next(events)
            server.signal(signal.SIGTERM)
            server.until_logged("not ready any more, but taking requests for 1 s")
            reply = idle.get("/health")
            assert (reply.status_code, reply.headers["connection"]) == (503, "close")
            reply = idle.post(
                "/generate", json={"inputs": "Hi", "parameters": {"max_new_tokens": 1}}
            )
            assert (reply.status_code, reply.headers["connection"]) == (200, "close")
            found = list(events)
            assert found[-1]["generated_text"]
            # The tokens came one after another.
            assert time.monotonic() - began > 30 * 0.05
        assert server.ended() == 0

    def test_an_idle_client_that_reads_nothing_does_not_keep_the_server(
        self, serve: Serve, tmp_path: Path
    ) -> None:
        own = pair(tmp_path)
        server = serve(None, "--ssl-certfile", own.certificate, "--ssl-keyfile", own.key)
        with httpx.Client(base_url=server.url, verify=own.client()) as idle:
            idle.get("/health")
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.ended() == 0
        assert time.monotonic() - began < 5

    def test_a_certificate_that_cannot_be_used_ends_the_start(
        self, serve: Serve, tmp_path: Path
    ) -> None:
        server = serve(None, "--ssl-certfile", str(tmp_path / "gone"))
        assert server.ended() == 1
        assert server.log == (
            f"Error: --ssl-certfile: cannot read {tmp_path}/gone: No such file or directory.\n"
        )


class Rollout:
    """Two servers, and clients that use the first one while it says that it is ready."""

    def __init__(self, old: FakeServer, new: FakeServer) -> None:
        self.old, self.new = old.url, new.url
        self.current = self.old
        self.failures: list[str] = []
        self.n_answered = Counter[str]()
        self.over = threading.Event()

    def watch(self) -> None:
        """Ask the old server for its health, as a load balancer would."""
        with httpx.Client(base_url=self.old) as client:
            while not self.over.wait(0.05):
                if client.get("/health/ready").status_code != 200:
                    self.current = self.new
                    return

    def ask(self) -> None:
        """One request after another, on connections that are kept."""
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": 3}}
        with httpx.Client(timeout=DEADLINE) as client:
            while not self.over.is_set():
                url = self.current
                try:
                    reply = client.post(f"{url}/generate", json=body)
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                    continue
                if reply.status_code != 200:
                    self.failures.append(reply.text)
                self.n_answered[url] += 1


def test_a_rolling_restart_loses_no_request(serve: Serve) -> None:
    old, new = serve(slow(), "--shutdown-delay", "1"), serve(slow())
    rollout = Rollout(old, new)
    threads = [threading.Thread(target=run) for run in (rollout.watch, *[rollout.ask] * 4)]
    for thread in threads:
        thread.start()
    while rollout.n_answered[rollout.old] < 8:
        signal.sigtimedwait([], 0.01)
    old.signal(signal.SIGTERM)
    assert old.ended() == 0
    n_before = rollout.n_answered[rollout.new]
    while rollout.n_answered[rollout.new] < n_before + 8:
        signal.sigtimedwait([], 0.01)
    rollout.over.set()
    for thread in threads:
        thread.join()
    assert rollout.failures == []
    assert rollout.current == rollout.new


def test_in_the_delay_requests_are_taken_and_connections_given_back(serve: Serve) -> None:
    server = serve(slow(), "--shutdown-delay", "60", "--kserve")
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/health").headers.get("connection") is None
        server.signal(signal.SIGTERM)
        server.until_logged("SIGTERM: not ready any more, but taking requests for 60 s")
        for path in ("/health", "/health/ready", "/ping", "/v2/health/ready"):
            assert client.get(path).status_code == 503, path
        for path in ("/health/live", "/v2/health/live"):
            assert client.get(path).status_code == 200, path
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}
        reply = client.post("/generate", json=body)
        assert (reply.status_code, reply.headers["connection"]) == (200, "close")
    with server.stream(200) as events:
        server.signal(signal.SIGTERM)
        server.until_logged("SIGTERM: no new requests")
        next(events)
        server.signal(signal.SIGTERM)
        server.until_logged("SIGTERM again: stopping now")
        assert list(events)[-1]["error_type"] == "incomplete_generation_stream"
    assert server.ended() == 0


def test_an_interrupt_does_not_wait_for_the_delay(serve: Serve) -> None:
    server = serve(None, "--shutdown-delay", "60")
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.signal(signal.SIGINT)
    assert server.ended() == 0


def test_a_request_that_was_received_is_answered_though_the_server_drains(serve: Serve) -> None:
    server = serve()
    body = b'{"inputs": "x"}'
    with ask(server, body[:3], len(body)) as connection:
        httpx.get(f"{server.url}/health")
        server.signal(signal.SIGTERM)
        server.until_logged("SIGTERM: no new requests")
        connection.sendall(body[3:])
        connection.settimeout(DEADLINE)
        assert b'"generated_text":"' in b"".join(iter(lambda: connection.recv(65536), b""))
    assert server.ended() == 0

"""How the server drains and stops, and where it listens."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.fake_server import FakeServer
from tests.fake_worker import Behaviour
from tests.test_launcher import Serve, serve
from tgi_async.errors import StartError
from tgi_async.listener import bind, open_queue

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


def test_after_the_grace_live_streams_are_told(serve: Serve) -> None:
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


def test_an_address_that_is_taken_or_not_this_machines_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StartError, match=f"port {taken.getsockname()[1]}: Address already in use"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(StartError, match=r"203\.0\.113\.1 port 1: Cannot assign"):
        bind("203.0.113.1", 1)
    with pytest.raises(StartError, match="--hostname and --port"):
        bind("no host at all", 0)
    with pytest.raises(StartError, match="--hostname"):
        bind("." + "x" * 100, 0)


def test_nobody_is_accepted_before_it_listens() -> None:
    with closing(bind("127.0.0.1", 0)) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname())


def test_of_two_servers_that_start_at_once_the_second_is_told() -> None:
    with closing(bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with closing(bind("127.0.0.1", port)) as second:
            open_queue(first)
            with pytest.raises(StartError, match="already in use"):
                open_queue(second)

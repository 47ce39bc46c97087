"""A server that is upgraded while clients use it."""

from __future__ import annotations

import os
import re
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.doubles.fake_engine_run import DEADLINE, alive
from tests.doubles.fake_server import PREPARED, FakeServer
from tests.doubles.fake_worker import Behaviour
from tests.test_launcher import Serve, serve

__all__ = ["serve"]  # the fixture

TAKEN_OVER = "answers: no new connections here|has taken over"
ROWS = 128


def roomy() -> Behaviour:
    return Behaviour(step_seconds=0.01, n_blocks=20_000, max_total_tokens=4096)


class Clients:
    """Clients that stream, and clients that send one short request after another."""

    def __init__(self, server: FakeServer, n_streams: int, n_asking: int, n_tokens: int) -> None:
        self._server = server
        self._n_tokens = n_tokens
        self.failures: list[str] = []
        self.n_streamed = self.n_answered = 0
        self._over = threading.Event()
        assert server.url  # it is ready
        runs = [self._stream] * n_streams + [self._ask] * n_asking + [self._connect]
        self._threads = [threading.Thread(target=self._run, args=(run,)) for run in runs]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let each finish what it does."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, one: Any) -> None:
        # What has been idle for long may be closed at any time: it is not used again.
        limits = httpx.Limits(keepalive_expiry=0.25)
        url = self._server.url
        with httpx.Client(base_url=url, timeout=DEADLINE, limits=limits) as client:
            while not self._over.is_set():
                try:
                    one(client)
                except Exception as error:
                    self.failures.append(f"{one.__name__}: {error!r}")

    def _stream(self, client: httpx.Client) -> None:
        parameters = {"max_new_tokens": self._n_tokens}
        body = {"inputs": "Hi", "parameters": parameters}
        with client.stream("POST", "/generate_stream", json=body) as response:
            assert response.status_code == 200, response.read()
            n = sum('"token"' in line for line in response.iter_lines())
        assert n == self._n_tokens, f"{n} tokens"
        self.n_streamed += 1

    def _ask(self, client: httpx.Client) -> None:
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}
        reply = client.post("/generate", json=body)
        assert reply.status_code == 200, reply.text
        self.n_answered += 1

    def _connect(self, _: httpx.Client) -> None:
        """A client with a new connection for each request."""
        reply = httpx.get(f"{self._server.url}/health", timeout=DEADLINE)
        assert reply.status_code == 200, reply.text
        self._over.wait(0.01)


def upgrade(server: FakeServer, n: int) -> None:
    """Upgrade for the `n`th time, counted from 1, and wait until the server before is gone."""
    server.signal(signal.SIGHUP)
    server.until_logged(f"(?s)(({TAKEN_OVER}).*){{{n}}}")
    if n == 1:
        server.until_logged("stays, and keeps process")
    else:
        server.until_logged(f"(?s)(from before the upgrade, exited with 0.*){{{n - 1}}}")


@pytest.mark.parametrize(
    ("n_upgrades", "n_streams", "n_asking", "n_tokens"),
    [(2, 4, 2, 40), pytest.param(10, 64, 8, 400, marks=pytest.mark.full)],
)
def test_an_upgrade_loses_nothing(
    serve: Serve, n_upgrades: int, n_streams: int, n_asking: int, n_tokens: int
) -> None:
    flags = ("--max-concurrent-requests", str(ROWS))
    # Many clients on a busy machine are slow to use a connection again.
    server = serve(roomy(), *flags, move_seconds=10.0 if n_streams > 4 else 0.5)
    clients = Clients(server, n_streams, n_asking, n_tokens)
    try:
        for n in range(1, n_upgrades + 1):
            upgrade(server, n)
            before = clients.n_answered, clients.n_streamed
            while not clients.failures and before[0] + 8 > clients.n_answered:
                signal.sigtimedwait([], 0.01)
    finally:
        clients.end()
    assert clients.failures == [], len(clients.failures)
    assert clients.n_streamed >= n_streams
    # Of each server only its own workers are left.
    assert len([pid for pid in server.worker_pids if alive(pid)]) == 1
    assert len(server.worker_pids) == n_upgrades + 1
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def until_file(path: Path, then: str) -> str:
    """Code that prepares the model; once the file is there, it does this instead."""
    found = PREPARED | {"path": str(path.parent)}
    return f"""
import json, os, sys, time
if os.path.exists({str(path)!r}):
    {then}
open({str(path)!r}, "w").close()
found = {found!r}
found["path"] = os.path.dirname(os.environ["TMPDIR"])
print(json.dumps(found))
"""


@pytest.mark.full
def test_a_new_server_that_does_not_start_leaves_the_old_one_as_it_was(
    serve: Serve, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    server = serve(roomy(), prepare=until_file(started, "sys.exit('this is no model')"))
    with server.stream(300) as events:
        server.signal(signal.SIGHUP)
        server.until_logged("this one goes on as if there had been no SIGHUP")
        assert re.search("this is no model.*the new server exited with 1 before", server.log, re.S)
        assert httpx.get(f"{server.url}/health").status_code == 200
        started.unlink()
        # The next one does, while the stream still comes from the first.
        server.signal(signal.SIGHUP)
        server.until_logged(TAKEN_OVER)
        assert list(events)[-1]["generated_text"]
    server.until_logged("stays, and keeps process")
    server.signal(signal.SIGHUP)
    server.until_logged("process \\d+ goes on as if there had been no SIGHUP")
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.signal(signal.SIGINT)
    assert server.ended() == 0


def test_one_that_fails_changes_nothing_and_a_stop_stops_both(serve: Serve, tmp_path: Path) -> None:
    started, failed = tmp_path / "started", tmp_path / "failed"
    server = serve(
        roomy(),
        prepare=until_file(
            started,
            f"time.sleep(600 if os.path.exists({str(failed)!r}) else 0); sys.exit('no model')",
        ),
    )
    with server.stream(30) as events:
        server.signal(signal.SIGHUP)
        server.until_logged("(?s)no model.*the new server exited with 1 before it was ready")
        failed.touch()
        server.signal(signal.SIGHUP)
        child = int(server.until_logged(r"(?s)exited with 1.*starts as process (\d+)")[1])
        server.signal(signal.SIGHUP)
        server.until_logged(f"an upgrade is under way.*end process {child}")
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.signal(signal.SIGTERM)
        assert list(events)[-1]["generated_text"]
    assert server.ended() == 0
    assert not alive(child)


def test_a_device_without_room_for_both_is_freed_first(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    behaviour = roomy()
    behaviour.device = "cuda:0"
    server = serve(behaviour, "--unix-socket", path)
    server.until_logged("ready in")
    transport = httpx.HTTPTransport(uds=path)
    body: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 100}}
    with ExitStack() as closing:
        client = closing.enter_context(
            httpx.Client(transport=transport, base_url="http://x", timeout=DEADLINE)
        )
        stream = closing.enter_context(client.stream("POST", "/generate_stream", json=body))
        lines = stream.iter_lines()
        next(lines)
        server.signal(signal.SIGHUP)
        server.until_logged("holds new requests until this one ends")
        other = httpx.Client(
            transport=httpx.HTTPTransport(uds=path), base_url="http://x", timeout=DEADLINE
        )
        closing.enter_context(other)
        assert other.get("/health/live").status_code == 200
        assert other.get("/health").status_code == 503
        assert len(server.worker_pids) == 1
        held: list[httpx.Response] = []
        body = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
        waiting = threading.Thread(target=lambda: held.append(other.post("/generate", json=body)))
        waiting.start()
        assert [line for line in lines if line][-1].startswith("data:")
        waiting.join()
        assert held[0].status_code == 200, held[0].text
    assert len(server.worker_pids) == 2
    assert os.path.exists(path)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert not os.path.exists(path)


@pytest.mark.full
def test_the_end_of_the_current_server_is_the_end(serve: Serve) -> None:
    server = serve(roomy())
    assert httpx.get(f"{server.url}/health").status_code == 200
    upgrade(server, 1)
    current = int(server.until_logged("process (\\d+) answers")[1])
    os.kill(current, signal.SIGKILL)
    assert server.process.wait(DEADLINE) == 128 + signal.SIGKILL
    assert f"process {current}, which served, was killed by SIGKILL" in server.log

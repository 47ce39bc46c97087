"""The chart's probes, asked as Kubernetes asks them, of a whole server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.kubernetes import containers, rendered
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour

pytestmark = pytest.mark.full

LOAD_SECONDS = 3.0
FASTER = 4
"""Periods are shorter than the chart's by this, for the test to be."""


class Kubelet:
    """Asks one probe at its period, and decides by its thresholds."""

    def __init__(self, port: int, probe: dict[str, Any]) -> None:
        self._url = f"http://127.0.0.1:{port}{probe['httpGet']['path']}"
        self._probe = probe
        self._failures = 0
        self._next = 0.0
        self.seen: list[int] = []
        self.passes = False
        self.fails = False
        """As many failures in a row as the threshold says."""

    def ask(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._probe["periodSeconds"] / FASTER
        try:
            status = httpx.get(self._url, timeout=self._probe["timeoutSeconds"]).status_code
        except httpx.TransportError:
            status = 0
        self.seen.append(status)
        if status == 200:
            self._failures = 0
            self.passes, self.fails = True, False
            return
        self._failures += 1
        if self._failures >= self._probe["failureThreshold"]:
            self.passes, self.fails = False, True


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def until(condition: Callable[[], bool], *asked: Kubelet, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        for one in asked:
            one.ask()
        time.sleep(0.02)


def test_a_pod_starts_mends_itself_and_is_replaced(tmp_path: Path) -> None:
    [container] = containers(rendered("--set", "shutdown.delaySeconds=5"))
    port = free_port()
    startup, readiness, liveness = (
        Kubelet(port, container[f"{kind}Probe"]) for kind in ("startup", "readiness", "liveness")
    )
    flags = [*container["args"], "--port", str(port)]
    server = FakeServer(tmp_path, Behaviour(load_seconds=LOAD_SECONDS), *flags)

    # It loads: not started, and not to be killed for it.
    until(lambda: startup.passes, startup)
    assert 503 in startup.seen
    assert not startup.fails
    until(lambda: readiness.passes and liveness.passes, readiness, liveness)

    # A worker is killed: no traffic, no restart.
    os.kill(server.worker_pids[-1], signal.SIGKILL)
    until(lambda: readiness.fails, readiness, liveness)
    assert set(liveness.seen) == {200}
    until(lambda: readiness.passes, readiness, liveness)
    assert set(liveness.seen) == {200}
    assert len(server.worker_pids) == 2

    # It is replaced: out of the endpoints while requests are still answered.
    server.signal(signal.SIGTERM)
    until(lambda: readiness.fails, readiness, liveness, seconds=5)
    assert set(liveness.seen) == {200}
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 3}}
    answer = httpx.post(f"http://127.0.0.1:{port}/generate", json=body)
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert server.ended() == 0

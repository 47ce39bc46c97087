"""The server as a process of its own, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx

START_SECONDS = 120.0
STOP_SECONDS = 30.0
COMMAND = (str(Path(sys.executable).with_name("tgi-async")), "serve")
LAUNCHER = (str(Path(sys.executable).with_name("text-generation-launcher")),)
VARIABLES = ("MODEL_ID", "HOSTNAME", "PORT", "DTYPE", "API_KEY", "OMP_NUM_THREADS")
READY = re.compile(r"ready in ([\d.]+) s on http://\S+?:(\d+)")


class Reply(NamedTuple):
    """Tokens and text of a generation over HTTP."""

    tokens: list[int]
    text: str


class Server:
    """A running server; `log` is what it wrote to stderr."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._terminated = False
        found = self._wait_until_ready()
        self.start_seconds = float(found[1])
        self.port = int(found[2])

    @classmethod
    @contextmanager
    def running(
        cls,
        log: Path,
        *flags: str,
        ends_with: int = 0,
        within: Sequence[str] = (),
        variables: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        command: Sequence[str] = COMMAND,
    ) -> Iterator[Server]:
        """Start one on a port that the kernel chooses, and stop it in the end.

        `within` is a command that runs the command behind it; `variables` are set, or unset where
        they are None. Raises AssertionError if it does not start, or does not stop by itself with
        the status `ends_with`.
        """
        changed: dict[str, str | None] = {**environment(), **(variables or {})}
        with log.open("wb") as file:
            process = subprocess.Popen(
                (*within, *command, "--hostname", "127.0.0.1", "--port", "0", *flags),
                stderr=file,
                env={name: value for name, value in changed.items() if value is not None},
                cwd=cwd,
            )
        try:
            server = cls(process, log)
            yield server
            server.terminate()
            assert server.wait() == ends_with, server.log
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _wait_until_ready(self) -> re.Match[str]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if (found := READY.search(self._log.read_text())) and self._answers(int(found[2])):
                return found
            time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self._log.read_text()}")

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        except httpx.TransportError:
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def worker_pid(self) -> int:
        """The one worker process that serves."""
        (worker,) = self.worker_pids().values()
        return worker

    def worker_pids(self) -> dict[int, int]:
        """The processes of all ranks, by rank: of the router's children those of the earliest
        epoch, as others may stand by."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        found: dict[int, dict[int, int]] = {}
        for pid in map(int, children):
            with suppress(FileNotFoundError):
                line = Path(f"/proc/{pid}/cmdline").read_text()
                if given := re.search(r"--epoch=(\d+)\0--rank=(\d+)", line):
                    found.setdefault(int(given[1]), {})[int(given[2])] = pid
        return found[min(found)] if found else {}

    def terminate(self) -> None:
        """Ask it to stop; a second time has no effect."""
        if not self._terminated:
            self._terminated = True
            self._process.terminate()

    def wait(self) -> int:
        """Its exit status, once it has stopped. Raises TimeoutExpired if it does not."""
        return self._process.wait(STOP_SECONDS)

    def kill_worker(self) -> None:
        self.signal_worker(signal.SIGKILL)

    def signal_worker(self, number: int) -> None:
        os.kill(self.worker_pid(), number)

    def client(self) -> httpx.AsyncClient:
        """With as many connections as asked for, and no limit on how long an answer takes."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits)

    def gauges(self) -> dict[str, float]:
        return self.parse(httpx.get(f"{self.url}/metrics"))

    @staticmethod
    def parse(metrics: httpx.Response) -> dict[str, float]:
        """Every metric without labels."""
        lines = metrics.text.splitlines()
        pairs = (line.split(" ") for line in lines if line[:1] != "#" and "{" not in line)
        return {name: float(value) for name, value in pairs}


def environment() -> dict[str, str]:
    """This process's, without the variables that would configure a server."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


async def generate(client: httpx.AsyncClient, inputs: str, parameters: Mapping[str, Any]) -> Reply:
    """`/generate`."""
    body = {"inputs": inputs, "parameters": {**parameters, "details": True}}
    response = await client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    reply = response.json()
    return Reply([token["id"] for token in reply["details"]["tokens"]], reply["generated_text"])


async def stream(
    client: httpx.AsyncClient,
    inputs: str,
    parameters: Mapping[str, Any],
    on_token: Callable[[], None] = lambda: None,
) -> Reply:
    """`/generate_stream`, to its end; its tokens are those of its events."""
    tokens: list[int] = []
    body = {"inputs": inputs, "parameters": dict(parameters)}
    async with client.stream("POST", "/generate_stream", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            tokens.append(event["token"]["id"])
            assert event["index"] == len(tokens)
            on_token()
            if event["generated_text"] is not None:
                return Reply(tokens, event["generated_text"])
    raise AssertionError(f"the stream ended after {len(tokens)} tokens, before its last event")

"""What adds up in a router that lives long: memory, descriptors, tasks, rows, blocks, reservations.

    python -m benchmarks.long_life --streams 1000 --minutes 10

The router is the real one, in a process of its own and over sockets; its worker is the fake one of
the tests. So many clients stream all the time, one text after another, and check each to its last
letter. One of ten goes away: before its request is complete, before the first token, in mid-stream,
politely or with a reset. In the end nobody asks, and what the router holds is compared with what it
held before anybody did; then as many as ever ask at once, and all must be served.

The exit status is 1 if a text was lost or wrong, if something stayed, or if the router's memory in
the last third of the time was more than 2 % above that of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import uvloop

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour, expected_tokens

MOST_TOKENS = 64
LEAVES = 0.1
"""Part of the requests whose client goes away."""
ALLOWED_GROWTH = 0.02
WARM_UP = 0.1
"""Part of the time that does not count: caches and pools fill."""
SAMPLES = 300
"""Looks at the memory in the whole time."""
DEADLINE = 120.0
"""Seconds in which all that was left is to be given back, on a busy machine."""
GAUGES = ("tgi_batch_current_size", "tgi_queue_size", "tgi_async_used_blocks")
QUIET_SECONDS = 11.0
"""Between two dumps of a server."""


class Held(NamedTuple):
    """What a router holds while nobody asks for anything."""

    descriptors: int
    tasks: int
    gauges: dict[str, float]


class Report(NamedTuple):
    """What came of it."""

    n_texts: int
    n_left: int
    failures: Counter[str]
    before: Held
    after: Held
    megabytes: list[float]
    """Resident memory of the router, over time."""

    @property
    def lost_nothing(self) -> bool:
        """Whether each text was right, and everything was given back."""
        return not self.failures and self.after == self.before

    @property
    def growth(self) -> float:
        """The memory of the last third over that of the first, less one."""
        counted = self.megabytes[int(len(self.megabytes) * WARM_UP) :]
        third = max(1, len(counted) // 3)
        return statistics.fmean(counted[-third:]) / statistics.fmean(counted[:third]) - 1


class Clients:
    """Clients of a router over a fake worker."""

    def __init__(self, server: FakeServer, behaviour: Behaviour) -> None:
        self._server = server
        self._port = int(server.url.rpartition(":")[2])
        self._behaviour = behaviour
        self._tokenizer = tiny_tokenizer()
        self._texts: dict[str, str] = {}
        self._n_dumps = 0
        self.n_texts = self.n_left = 0
        self.failures = Counter[str]()

    def _expected(self, prompt: str, n: int) -> str:
        """What an undisturbed worker says."""
        if prompt not in self._texts:
            ids = self._tokenizer.encode(prompt)
            tokens = expected_tokens(self._behaviour, ids, MOST_TOKENS)
            self._texts[prompt] = "".join(map(self._tokenizer.token_text, tokens))
        return self._texts[prompt][:n]

    async def stream(self, seed: int, until: float) -> None:
        """Stream one text after another until this time of the loop's clock."""
        draw = random.Random(seed)
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            leaves = draw.random() < LEAVES
            try:
                async with asyncio.timeout(DEADLINE):
                    await self._one(draw, leaves=leaves)
            except Exception as error:
                self.failures[f"{type(error).__name__}: {error}"[:200]] += 1

    async def _one(self, draw: random.Random, *, leaves: bool) -> None:
        prompt, n = f"{draw.randrange(50)} rivers", draw.randint(MOST_TOKENS // 4, MOST_TOKENS)
        body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": n}}).encode()
        request = (
            b"POST /generate_stream HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        ) + body
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            if leaves:
                await self._leave(draw, request, reader, writer)
                return
            writer.write(request)
            n_events, last = 0, b""
            async for line in reader:
                if line.startswith(b"data:"):
                    n_events += 1
                    last = line
            text = json.loads(last.removeprefix(b"data:")).get("generated_text")
            if n_events != n or text != self._expected(prompt, n):
                what = "another text" if n_events == n else "tokens are lost"
                raise AssertionError(what)
            self.n_texts += 1
        finally:
            writer.close()

    async def _leave(
        self,
        draw: random.Random,
        request: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        stage = draw.randrange(3)
        writer.write(request[: draw.randrange(len(request))] if stage == 0 else request)
        await writer.drain()
        for _ in range(draw.randrange(1, 12) if stage == 2 else 0):
            await reader.readline()
        if draw.random() < 0.5:
            linger = struct.pack("ii", 1, 0)  # a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.n_left += 1

    async def held(self, *, count_tasks: bool) -> Held:
        """What the router holds once nothing is in progress. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE):
            while any((await self._gauges()).values()):  # noqa: ASYNC110 - it is no event
                await asyncio.sleep(0.1)
        # Its own connection for the gauges is gone soon.
        await asyncio.sleep(0.5)
        gauges, n_tasks = await self._gauges(), await self._n_tasks() if count_tasks else 0
        return Held(len(os.listdir(f"/proc/{self._server.process.pid}/fd")), n_tasks, gauges)

    async def _gauges(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        pairs = dict(re.findall(r"^(\w+) ([\d.e+-]+)$", text, re.MULTILINE))
        return {name: float(pairs[name]) for name in GAUGES}

    async def _n_tasks(self) -> int:
        """The tasks of the router, which it shows at SIGUSR1."""
        if self._n_dumps:
            await asyncio.sleep(QUIET_SECONDS)
        self._n_dumps += 1
        self._server.signal(signal.SIGUSR1)
        async with asyncio.timeout(DEADLINE):
            shown = "WARNING the scheduler:"
            while self._server.log.count(shown) < self._n_dumps:  # noqa: ASYNC110 - nor is this
                await asyncio.sleep(0.1)
        dump = self._server.log.rpartition("SIGUSR1: the stacks of")[2].partition("the scheduler:")
        return sum(int(n) for n in re.findall(r"WARNING +(\d+) x ", dump[0]))

    @property
    def megabytes(self) -> float:
        """The resident memory of the router."""
        pages = int(Path(f"/proc/{self._server.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6


async def live(
    folder: Path, n_streams: int, seconds: float, step_seconds: float, *, count_tasks: bool = True
) -> Report:
    """Let so many clients stream for so long. Raises TimeoutError where something is never given
    back."""
    _raise_limit(2 * n_streams + 256)
    behaviour = Behaviour(
        n_blocks=20 * n_streams,
        max_total_tokens=256,
        max_batch_prefill_tokens=16 * n_streams,
        step_seconds=step_seconds,
    )
    server = FakeServer(
        folder, behaviour, "--max-concurrent-requests", str(n_streams), watched=False
    )
    try:
        clients = Clients(server, behaviour)
        before = await clients.held(count_tasks=count_tasks)
        until = asyncio.get_running_loop().time() + seconds
        streams = [asyncio.create_task(clients.stream(seed, until)) for seed in range(n_streams)]
        megabytes: list[float] = []
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(seconds / SAMPLES)
            megabytes.append(clients.megabytes)
        await asyncio.gather(*streams)
        # All rows, reservations and permits are there again.
        once = asyncio.get_running_loop().time() + 0.01
        await asyncio.gather(*(clients.stream(-seed - 1, once) for seed in range(n_streams)))
        after = await clients.held(count_tasks=count_tasks)
        server.signal(signal.SIGTERM)
        if await asyncio.to_thread(server.process.wait, DEADLINE):
            clients.failures["the server did not end in order"] += 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.process.kill()
        server.process.wait()
    return Report(clients.n_texts, clients.n_left, clients.failures, before, after, megabytes)


def _raise_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.long_life")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--step", type=float, default=0.15, help="seconds of a step of the worker")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        report = uvloop.run(live(Path(folder), given.streams, given.minutes * 60, given.step))
    print(f"{report.n_texts} texts, {report.n_left} clients left, failures: {report.failures}")
    print(f"before: {report.before}")
    print(f"after:  {report.after}")
    shown = report.megabytes[:: max(1, len(report.megabytes) // 12)]
    print("router, MB:", " ".join(f"{one:.1f}" for one in shown))
    print(f"the last third over the first: {100 * report.growth:+.2f} %")
    return 0 if report.lost_nothing and report.growth <= ALLOWED_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long clients wait when a worker is killed or stopped: `python benchmarks/worker_return.py`.

It starts a server, keeps streams running, harms the worker that serves again and again, and prints
the seconds until the server is ready again and the pause in each stream that was live: from its
last token before the harm to its next one. The server's own flags come last:

    python benchmarks/worker_return.py --kills 20 --streams 32 -- --standby
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.served import Served, serving

BACK = "the worker is back"
STEADY_SECONDS = 2.0
"""Between two kills, once all streams go on."""
GIVE_UP_SECONDS = 300.0
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Stream:
    """A client that asks for one text after another."""

    def __init__(self, number: int, n_tokens: int) -> None:
        self._number = number
        self._n_tokens = n_tokens
        self._n_texts = 0
        self.last = 0.0
        """When the last token came; 0 between two texts."""
        self.pause: asyncio.Future[float] | None = None
        """What is to be told the time of the next token."""

    async def run(self, client: httpx.AsyncClient) -> None:
        """Ask until cancelled. Raises RuntimeError where a stream ends with an error."""
        while True:
            self._n_texts += 1
            body = {
                "inputs": f"Story {self._number} of {self._n_texts}: once upon a time",
                "parameters": {"max_new_tokens": self._n_tokens, "ignore_eos": True},
            }
            async with client.stream("POST", "/generate_stream", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        self._token(line.removeprefix("data: "))
            self.last = 0.0

    def _token(self, data: str) -> None:
        if "error" in json.loads(data):
            raise RuntimeError(f"a stream ended with {data}")
        self.last = time.monotonic()
        if self.pause is not None and not self.pause.done():
            self.pause.set_result(self.last)


def serving_worker(router: int) -> int:
    """Return the process of rank 0 that serves: of the workers the one of the earliest epoch."""
    children = Path(f"/proc/{router}/task/{router}/children").read_text().split()
    found: dict[int, int] = {}
    for pid in children:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        given = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
        if "workers" in words and given["rank"] == "0":
            found[int(given["epoch"])] = int(pid)
    return found[min(found)]


def n_returns(log: Path) -> int:
    """Count how often the server was ready again, by its log."""
    return log.read_text().count(BACK)


async def harm(
    server: Served, log: Path, streams: Sequence[Stream], how: int
) -> tuple[float, list[float]]:
    """Harm the worker. Return the seconds until the next one was ready, and each stream's pause."""
    n_back = n_returns(log)
    live = [one for one in streams if one.last]
    worker = serving_worker(server.pid)
    os.kill(worker, how)
    began = time.monotonic()
    last = [one.last for one in live]
    await asyncio.sleep(0.05)  # what it had sent by then is still read
    last = [max(before, one.last) for before, one in zip(last, live, strict=True)]
    for one in live:
        one.pause = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(GIVE_UP_SECONDS):
        while n_returns(log) == n_back:  # noqa: ASYNC110 - the log is no event
            await asyncio.sleep(0.01)
        back = time.monotonic() - began
        nexts = [await one.pause for one in live if one.pause is not None]
    return back, [after - before for after, before in zip(nexts, last, strict=True)]


def share(values: Sequence[float], part: float) -> float:
    """Return the value that this part of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def summary(name: str, values: Sequence[float]) -> str:
    """Return a line with the quantiles of `values`, in seconds."""
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return f"{name}: " + ", ".join(f"{key} {share(values, at):.2f} s" for key, at in named.items())


async def measure(server: Served, log: Path, given: argparse.Namespace) -> None:
    """Print what each harm did, and all of them together."""
    streams = [Stream(number, given.tokens) for number in range(given.streams)]
    limits = httpx.Limits(max_connections=None)
    url = f"http://127.0.0.1:{server.port}"
    returns: list[float] = []
    pauses: list[float] = []
    async with (
        httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        running = [group.create_task(one.run(client)) for one in streams]
        for number in range(given.kills):
            await asyncio.sleep(given.every)
            back, paused = await harm(server, log, streams, SIGNALS[given.how])
            print(f"{number + 1}: ready again after {back:.2f} s, {summary('pause', paused)}")
            returns.append(back)
            pauses += paused
        for task in running:
            task.cancel()
    print(f"{given.how}, {given.kills} times; the first start took {server.ready_seconds} s")
    print(summary("ready again", returns))
    print(summary("pause of a stream", pauses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder; default: the embedded model")
    parser.add_argument("--how", choices=SIGNALS, default="kill")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400, help="of each text")
    parser.add_argument("--every", type=float, default=STEADY_SECONDS, help="seconds between")
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    parser.add_argument("flags", nargs="*", help="of the server, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = given.log or Path(folder) / "log"
        with serving(given.model, log, given.flags) as server:
            asyncio.run(measure(server, log, given))


if __name__ == "__main__":
    main()

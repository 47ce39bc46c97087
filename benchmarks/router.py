"""The cost of the router alone: microseconds of its CPU time a token, and concurrent streams.

    python -m benchmarks.router

The router is the real one, launcher, HTTP server and all, in its own process; the worker runs no
model (`router_worker`) and the client only drains bytes (`router_client`), each in a process of its
own. The tokenizer is the embedded model's and detokenizes English text.

- `single`: the worker keeps a pace that leaves the router idle in between, so that each token is an
  event, a chunk and a write of its own.
- `router behind`: the worker answers at once, so that results wait for the router.
- `client behind`: the client naps, so that what it did not read waits in the router.
- `held`: 1,000 streams at once.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.router_client import Drained
from benchmarks.router_worker import VARIABLE, Pace
from tgi_async import cli, launcher, preparation, serving
from tgi_async.text.tokenizer import Tokenizer

WORKER = (sys.executable, "-m", "benchmarks.router_worker")
PREPARED = "ROUTER_BENCHMARK_PREPARED"
READY = re.compile(r"ready in [\d.]+ s on http://[^ ]+:(\d+)")
START_SECONDS = 60.0
TEXT = (
    "The night train left the city at a quarter past nine, and by ten o'clock the lamps of the "
    "suburbs had given way to fields. “Is this seat free?” asked a woman with a café's paper cup; "
    "she had been to Zürich, she said, and 37 other towns, none of which she'd see again. "
    "We talked of bridges, of the price of bread, of a dog called Möbius who slept all day.\n\n"
)


class Route(NamedTuple):
    """A streaming route, and a body that asks it for `n` tokens."""

    path: str
    body: str

    @classmethod
    def named(cls, name: str, n: int) -> Route:
        if name == "generate":
            body: dict[str, object] = {"inputs": "Hello", "parameters": {"max_new_tokens": n}}
            return cls("/generate_stream", json.dumps(body))
        body = {"stream": True, "max_tokens": n, "temperature": 0}
        if name == "completions":
            return cls("/v1/completions", json.dumps(body | {"prompt": "Hello"}))
        messages = [{"role": "user", "content": "Hello"}]
        return cls("/v1/chat/completions", json.dumps(body | {"messages": messages}))


class Work(NamedTuple):
    n_streams: int
    n_tokens: int
    step_seconds: float
    nap_seconds: float = 0.0


WORKS = {
    "single": Work(64, 2000, 0.006),
    "router behind": Work(64, 4000, 0.0),
    "client behind": Work(64, 4000, 0.0, 0.25),
    "held": Work(1000, 100, 0.1),
}


class Cost(msgspec.Struct):
    """The cost of one work: CPU time of the router's process alone, between the first tokens and
    the end."""

    work: str
    route: str
    n_streams: int
    n_tokens: int
    cpu_microseconds_a_token: float
    cpu_share: float
    """Share of one core."""
    tokens_a_second: float
    events_a_token: float
    reads_a_token: float
    """Pieces in which the client got them: below 1 where several came in one."""
    bytes_a_token: float
    n_held: int
    n_failed: int
    router_rss_mb: float

    @classmethod
    def of(cls, name: str, route: str, work: Work, drained: Drained) -> Cost:
        began, ended = drained.began, drained.ended
        n = work.n_streams * work.n_tokens - began.n_events
        cpu, wall = ended.cpu_seconds - began.cpu_seconds, ended.wall_seconds - began.wall_seconds
        return cls(
            name,
            route,
            work.n_streams,
            n,
            round(cpu / n * 1e6, 2),
            round(cpu / wall, 3),
            round(n / wall, 1),
            round((ended.n_events - began.n_events) / n, 3),
            round((ended.n_reads - began.n_reads) / n, 3),
            round((ended.n_bytes - began.n_bytes) / n, 1),
            drained.n_held,
            drained.n_failed,
            round(drained.router_rss_bytes / 1e6, 1),
        )


def prepared() -> str:
    """Return the folder of the embedded model, from the router's own preparation."""
    return subprocess.run(preparation.PREPARE, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def router(pace: Pace, model: str, n_streams: int, *flags: str) -> Iterator[tuple[int, int]]:
    """Yield the process id and the port of a router that answers."""
    environment = os.environ | {VARIABLE: msgspec.json.encode(pace).decode(), PREPARED: model}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.router", "--serve", "--hostname", "127.0.0.1"),
                *("--port", "0", "--max-concurrent-requests", str(n_streams), *flags),
            ],
            env=environment,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                said = os.pread(log.fileno(), 1 << 20, 0).decode()
                if found := READY.search(said):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"The router did not start. It said:\n{said}")
                time.sleep(0.05)
            yield process.pid, int(found[1])
        finally:
            process.terminate()
            process.wait()


def measure(name: str, route_name: str, work: Work, model: str, tokens: list[int]) -> Cost:
    """Run one work against a router of its own."""
    route = Route.named(route_name, work.n_tokens)
    with router(Pace(tokens, work.step_seconds), model, work.n_streams) as (process, port):
        said = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.router_client", "--host", "127.0.0.1"),
                *("--port", str(port), "--router", str(process), "--path", route.path),
                *("--streams", str(work.n_streams), "--body", route.body),
                *("--nap", str(work.nap_seconds)),
            ],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    return Cost.of(name, route_name, work, msgspec.json.decode(said, type=Drained))


def serve(flags: list[str]) -> int:
    """Run the router: the real one but for the model's preparation, done before, and the worker."""
    prepare = (sys.executable, "-c", f"import os; print(os.environ[{PREPARED!r}])")
    commands = serving.Commands(prepare, WORKER)
    launcher.serve = functools.partial(launcher.serve, commands=commands)
    return cli.main(["serve", *flags])


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2:])
    parser = argparse.ArgumentParser(description="What the router costs, alone.")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument(
        "--route", nargs="+", choices=("generate", "chat", "completions"), default=["generate"]
    )
    parser.add_argument("--streams", type=int, help="instead of the work's own number")
    parser.add_argument("--tokens", type=int, help="of each stream, instead of the work's own")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    given = parser.parse_args()
    model = prepared()
    tokens = Tokenizer.from_folder(Path(json.loads(model)["path"])).encode(TEXT)
    n_failed = 0
    for name in given.work:
        for route in given.route:
            work = WORKS[name]
            work = work._replace(
                n_streams=given.streams or work.n_streams, n_tokens=given.tokens or work.n_tokens
            )
            cost = measure(name, route, work, model, tokens)
            n_failed += cost.n_failed
            if given.json:
                print(msgspec.json.encode(cost).decode(), flush=True)
                continue
            print(
                f"{name}, {route}, {cost.n_streams} streams: "
                f"{cost.cpu_microseconds_a_token:.1f} µs of router CPU a token "
                f"({cost.tokens_a_second:.0f} tok/s, {cost.cpu_share:.0%} of a core); "
                f"{cost.events_a_token:.2f} events, {cost.reads_a_token:.2f} reads and "
                f"{cost.bytes_a_token:.0f} bytes a token; {cost.n_held} held, "
                f"{cost.n_failed} failed, router {cost.router_rss_mb:.0f} MB",
                flush=True,
            )
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())

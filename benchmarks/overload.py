"""A server that is asked for more than it can do, and a small client beside a large one.

    python -m benchmarks.overload [--seconds 120] [--url http://localhost:3000]

Without `--url` the router is the real one and the worker runs no model (`router_worker`): its steps
take a set time, whatever is in them. With it, a server that runs already is measured, which has to
have as many rows as `--rows` says (`--max-concurrent-requests`), and for `--tenants` the flags
`--tenant-header X-Tenant --forwarded-allow-ips 127.0.0.1`.

- `overload`: first as many streams as there are rows, one behind the other: the capacity. Then so
  many requests a second that they ask for ten times of it, whatever becomes of them. Goodput is in
  tokens of answers that were whole; a refusal is timed from its connection to its status.
- `small`: a client with one stream after another, alone, then beside one with 50 streams, by
  addresses or by tenants. A step of the loaded batch is the large client's time between tokens.
- `shares`: both clients have more waiting than there are rows. Each gets half of the service.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.router import TEXT, prepared, router
from benchmarks.router_worker import Pace
from tgi_async.text.tokenizer import Tokenizer

N_TOKENS = 128
N_SMALL = 8
"""Tokens of the small client's answers: it is its first ones that are measured."""
TENANT = "X-Tenant"
LARGE, SMALL = "127.0.0.1", "127.0.0.2"


class Server(NamedTuple):
    host: str
    port: int
    tenants: bool
    """Whether clients are distinguished by a header; else by their addresses."""


class Answer(NamedTuple):
    """A request and its answer. Times are of the monotonic clock; `events` are those of its
    events, which have a token each, or several where it came late."""

    status: int
    wanted: int
    asked: float
    ended: float
    events: list[float]
    whole: bool

    @property
    def first(self) -> float:
        return self.events[0] - self.asked


async def ask(server: Server, client: str, n_tokens: int = N_TOKENS) -> Answer:
    """Ask for a stream of so many tokens."""
    body = json.dumps(
        {"prompt": "Hello", "max_tokens": n_tokens, "stream": True, "ignore_eos": True}
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {server.host}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    )
    address = (client, 0)
    if server.tenants:
        head, address = f"{head}{TENANT}: {client}\r\n", (LARGE, 0)
    asked = time.monotonic()
    events: list[float] = []
    status, whole = 0, False
    try:
        reader, writer = await asyncio.open_connection(server.host, server.port, local_addr=address)
        try:
            writer.write(head.encode() + b"\r\n" + body)
            status = int((await reader.readline()).split()[1])
            while line := await reader.readline():
                if line.startswith(b'data: {"'):
                    events.append(time.monotonic())
                whole = whole or line.startswith(b"data: [DONE]")
        finally:
            writer.transport.abort()
    except (OSError, IndexError, ValueError):
        status = 0
    return Answer(status, n_tokens, asked, time.monotonic(), events, whole and bool(events))


async def keep_asking(
    server: Server,
    client: str,
    n: int,
    until: Callable[[], bool],
    answers: list[Answer],
    n_tokens: int = N_TOKENS,
) -> None:
    """Have `n` streams at any time."""

    async def one() -> None:
        while not until():
            answer = await ask(server, client, n_tokens)
            answers.append(answer)
            if answer.status != 200:
                await asyncio.sleep(0.1)

    await asyncio.gather(*(one() for _ in range(n)))


def rate(answers: list[Answer], began: float, ended: float) -> float:
    """Tokens a second, of whole answers."""
    n = 0.0
    for one in answers:
        if one.whole:
            n += one.wanted * sum(began <= at < ended for at in one.events) / len(one.events)
    return n / (ended - began)


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


async def overload(server: Server, rows: int, seconds: float, times: float) -> None:
    answers: list[Answer] = []
    began = time.monotonic()
    span = max(5.0, seconds / 6)
    await keep_asking(server, LARGE, rows, after(span), answers)
    # Not the time in which the first are admitted and the last end.
    capacity = rate(answers, began + span / 4, began + span)
    print(f"capacity: {capacity:.0f} tokens/s with {rows} streams", flush=True)
    interval = N_TOKENS / (capacity * times)
    began = time.monotonic()
    asked: list[asyncio.Task[Answer]] = []
    for number in itertools.count():
        now = time.monotonic()
        if (due := began + number * interval) >= began + seconds:
            break
        if due > now:
            await asyncio.sleep(due - now)
        asked.append(asyncio.create_task(ask(server, LARGE)))
    ended = time.monotonic()
    answers = list(await asyncio.gather(*asked))
    # Rows and queue are full soon after the beginning.
    goodput = rate(answers, began + seconds / 10, ended)
    refused = sorted(one.ended - one.asked for one in answers if one.status in (429, 503))
    failed = sum(one.status not in (200, 429, 503) for one in answers)
    cut = sum(one.status == 200 and not one.whole for one in answers)
    p99 = refused[int(len(refused) * 0.99)] if refused else 0.0
    print(
        f"overload: {len(answers) / (ended - began):.0f} requests/s for {ended - began:.0f} s, "
        f"goodput {goodput:.0f} tokens/s, {goodput / capacity:.1%} of the capacity; "
        f"{sum(one.whole for one in answers)} whole, {len(refused)} refused "
        f"(p50 {statistics.median(refused or [0]) * 1000:.1f}, p99 {p99 * 1000:.1f} ms), "
        f"{failed} failed, {cut} cut",
        flush=True,
    )


async def small(server: Server, n_large: int, seconds: float) -> None:
    async def firsts() -> list[Answer]:
        found: list[Answer] = []
        await keep_asking(server, SMALL, 1, after(seconds / 3), found, N_SMALL)
        return [one for one in found if one.whole]

    alone = await firsts()
    large: list[Answer] = []
    stop = False
    asking = asyncio.create_task(keep_asking(server, LARGE, n_large, lambda: stop, large))
    await asyncio.sleep(seconds / 10)
    began = time.monotonic()
    beside = await firsts()
    ended = time.monotonic()
    stop = True
    await asking

    def gap(answers: list[Answer]) -> float:
        gaps = [
            (one.events[-1] - one.events[0]) / (one.wanted - 1)
            for one in answers
            if one.whole and began < one.ended and one.asked < ended
        ]
        return statistics.mean(gaps)

    step = gap(large)
    by = sorted(one.first for one in beside)
    base = statistics.median(one.first for one in alone)
    p50, p95 = statistics.median(by), by[int(len(by) * 0.95)]
    print(
        f"small beside {n_large}: first token {p50 * 1000:.1f} ms (p95 {p95 * 1000:.1f}), alone "
        f"{base * 1000:.1f}; a loaded step is {step * 1000:.1f}: {(p50 - base) / step:.2f} steps "
        f"beyond (p95 {(p95 - base) / step:.2f}); its tokens come every {gap(beside) * 1000:.1f} "
        f"ms, {gap(beside) / step:.3f} of the others'; {len(alone)} and {len(beside)} answers",
        flush=True,
    )


async def shares(server: Server, rows: int, seconds: float) -> None:
    answers: dict[str, list[Answer]] = {LARGE: [], SMALL: []}
    began = time.monotonic()
    until = after(seconds / 2)
    await asyncio.gather(
        keep_asking(server, LARGE, 3 * rows, until, answers[LARGE]),
        keep_asking(server, SMALL, 2 * rows, until, answers[SMALL]),
    )
    span = began + seconds / 10, began + seconds / 2
    service = {client: rate(found, *span) for client, found in answers.items()}
    print(
        f"shares: {service[LARGE]:.0f} and {service[SMALL]:.0f} tokens/s with {3 * rows} and "
        f"{2 * rows} streams on {rows} rows",
        flush=True,
    )


async def run(given: argparse.Namespace, server: Server) -> None:
    for name in given.work:
        if name == "overload":
            await overload(server, given.rows, given.seconds, given.times)
        elif name == "small":
            await small(server, given.large, given.seconds)
        else:
            await shares(server, given.rows, given.seconds)


def main() -> int:
    works = ("overload", "small", "shares")
    parser = argparse.ArgumentParser(description="Overload, and a small client beside a large.")
    parser.add_argument("--work", nargs="+", choices=works, default=list(works))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--times", type=float, default=10.0, help="of the capacity")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--large", type=int, default=50, help="streams of the large client")
    parser.add_argument("--step", type=float, default=0.05, help="seconds of a made-up step")
    parser.add_argument("--tenants", action="store_true", help="distinguish clients by a header")
    parser.add_argument("--url", help="of a server that runs")
    given = parser.parse_args()
    with ExitStack() as closing:
        if given.url is None:
            model = prepared()
            tokens = Tokenizer.from_folder(Path(json.loads(model)["path"])).encode(TEXT)
            flags = ("--tenant-header", TENANT, "--forwarded-allow-ips", "127.0.0.1")
            own = router(
                Pace(tokens, given.step), model, given.rows, *(flags if given.tenants else ())
            )
            _, port = closing.enter_context(own)
            server = Server("127.0.0.1", port, given.tenants)
        else:
            place = urlsplit(given.url)
            server = Server(place.hostname or "127.0.0.1", place.port or 80, given.tenants)
        asyncio.run(run(given, server))
    return 0


if __name__ == "__main__":
    sys.exit(main())

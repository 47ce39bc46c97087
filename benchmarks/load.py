"""Closed-loop load against one or more servers, interleaved in one run, with ratios.

    python benchmarks/load.py --server ours=http://127.0.0.1:8080 \\
        --server other=http://127.0.0.1:8001 --work streams16 --rounds 3

A work is a fixed number of requests kept at a fixed concurrency: a client sends its next request
when its last one ended. A round is one work on every server in turn (A B, A B, ...), so that a
machine which slows down slows all of them. The first round warms up and is not counted.

- Greedy, `ignore_eos`, a fixed output length. Prompts are drawn from a seeded word list: the same
  for every server, new in every round and, as the default seed is random, new in every run. No
  prefix cache helps by accident; in the work `prefix` it helps on purpose.
- Tokens are counted by the server's usage object, and a request that did not give exactly the
  tokens asked for has failed. Events are never taken for tokens: servers may put several in one.
- A request has a connection of its own, and connecting is part of its time to first token (TTFT).
- Answers are stamped as they arrive and parsed after the round: the client shares the processors
  with the servers, so its own share is measured and printed.

Only the standard library is needed; uvloop is used where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NOUNS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea body information back parent face others level
office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music market sense nation plan college
interest death experience effect use class control field development role effort rate heart drug
show leader light voice wife police mind price report decision son view relationship town road
arm difference value building action season society tax director position player record paper
space ground form event official matter center couple site project activity star table need court
"""
WORDS = NOUNS.split()
"""With a space before it, each is one token in most vocabularies of English."""

MAX_ANSWER_BYTES = 64 * 1024 * 1024
QUOTED_CHARS = 160
"""How much of a server's error is shown."""


class LoadError(Exception):
    """The run cannot start or go on; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Work:
    """`requests` prompts, `concurrency` at a time, `output_tokens` each; lengths in words."""

    requests: int
    concurrency: int
    output_tokens: int
    prompt_words: int = 32
    shared_words: int = 0
    """Words at the start of every prompt of a round that are the same."""

    def prompts(self, seed: str) -> list[str]:
        draw = random.Random(seed)
        shared = draw.choices(WORDS, k=self.shared_words)
        return [
            " ".join(shared + draw.choices(WORDS, k=self.prompt_words))
            for _ in range(self.requests)
        ]


WORKS = {
    "stream1": Work(requests=4, concurrency=1, output_tokens=128),
    "streams16": Work(requests=48, concurrency=16, output_tokens=128),
    "streams64": Work(requests=128, concurrency=64, output_tokens=64),
    "prefill": Work(requests=12, concurrency=4, output_tokens=1, prompt_words=1200),
    "prefix": Work(requests=24, concurrency=4, output_tokens=16, shared_words=1500),
    "one-token": Work(requests=256, concurrency=32, output_tokens=1),
}


@dataclass(frozen=True, slots=True)
class Server:
    """Where one server listens and which of the two streaming routes it is asked by."""

    name: str
    host: str
    port: int
    path: str
    model: str | None
    pid: int | None

    @property
    def speaks_tgi(self) -> bool:
        return self.path.endswith("/generate_stream")

    def request(self, prompt: str, output_tokens: int) -> bytes:
        body: dict[str, Any]
        if self.speaks_tgi:
            parameters = {"max_new_tokens": output_tokens, "do_sample": False, "details": True}
            body = {"inputs": prompt, "parameters": parameters | {"ignore_eos": True}}
        else:
            body = {"prompt": prompt, "max_tokens": output_tokens, "temperature": 0.0}
            body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
            if self.model is not None:
                body["model"] = self.model
        payload = json.dumps(body).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + payload

    def read(self, event: dict[str, Any]) -> tuple[bool, int | None, int | None]:
        """(has it a token, prompt tokens, output tokens); the counts come with the last event."""
        if self.speaks_tgi:
            details = event.get("details") or {}
            counts = details.get("input_length"), details.get("generated_tokens")
            return "token" in event, *counts
        usage = event.get("usage") or {}
        return (
            bool(event.get("choices")),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
        )


class Exchange(asyncio.Protocol):
    """One request and its answer: a minimal HTTP/1.1 client that stamps server-sent events.

    Every `data:` line is one event, which holds for the servers this is made for.
    """

    def __init__(self, request: bytes) -> None:
        self.events: list[tuple[float, bytes]] = []
        """(time of arrival, payload), the payload not parsed yet."""
        self.sent_at = 0.0
        self.failure: str | None = "not started in time"
        self._request = request
        self._buffer = bytearray()
        self._line = bytearray()
        self._status = 0
        self._chunked = False
        self._left: int | None = None
        self._received = 0
        self._ended: asyncio.Future[None] | None = None

    async def run(self, host: str, port: int) -> None:
        """Sends and waits for the end of the answer; what goes wrong is kept in `failure`."""
        loop = asyncio.get_running_loop()
        self.failure = "not finished in time"
        self._ended = loop.create_future()
        self.sent_at = time.perf_counter()
        try:
            transport, _ = await loop.create_connection(lambda: self, host, port)
        except OSError as error:
            self.failure = f"no connection: {error}"
            return
        try:
            transport.write(self._request)
            await self._ended
        finally:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._received += len(data)
        self._buffer += data
        if self._ended is None or self._ended.done():
            return
        try:
            if self._received > MAX_ANSWER_BYTES:
                raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            if self._status == 0 and not self._read_head():
                return
            body, last = self._read_chunks() if self._chunked else self._read_plain()
        except (ValueError, IndexError) as error:
            return self._end(f"not an HTTP/1.1 answer: {error}")
        self._line += body
        if self._status == 200:
            *lines, self._line = self._line.split(b"\n")
            self.events += [(now, bytes(line[5:])) for line in lines if line.startswith(b"data:")]
        if last:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        until_close = self._status != 0 and not self._chunked and self._left is None
        self._end(None if until_close and exc is None else f"connection lost: {exc or 'closed'}")

    def _end(self, failure: str | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if failure is None and self._status != 200:
            text = self._line.decode(errors="replace")[:QUOTED_CHARS]
            failure = f"status {self._status}: {text}"
        self.failure = failure
        self._ended.set_result(None)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        status, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)
        }
        self._status = int(status.split()[1])
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        if "content-length" in headers:
            self._left = int(headers["content-length"])
        del self._buffer[: end + 4]
        return True

    def _read_plain(self) -> tuple[bytes, bool]:
        body = bytes(self._buffer)
        self._buffer.clear()
        if self._left is None:
            return body, False
        self._left -= len(body)
        return body, self._left <= 0

    def _read_chunks(self) -> tuple[bytes, bool]:
        """The whole chunks that have arrived, and whether the last one was among them."""
        body, start, last = b"", 0, False
        while (end := self._buffer.find(b"\r\n", start)) >= 0:
            size = int(self._buffer[start:end].split(b";")[0], 16)
            if size == 0:
                last = True
                break
            after = end + 2 + size + 2
            if len(self._buffer) < after:
                break
            body += self._buffer[end + 2 : after - 2]
            start = after
        del self._buffer[:start]
        return body, last


@dataclass(slots=True)
class Round:
    """What one server did with one work, once. Times in seconds."""

    elapsed: float
    client_cpu: float
    """Processor seconds of this load generator."""
    requests: int
    output_tokens: int = 0
    prompt_tokens: int = 0
    events: int = 0
    unverified: int = 0
    """Requests whose server sent no usage: their tokens are taken to be those asked for."""
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Between two events of one stream."""
    per_token: list[float] = field(default_factory=list)
    """One value a request: first to last event, divided by the output tokens but one."""
    failures: list[str] = field(default_factory=list)
    memory: int | None = None
    """PSS in bytes of the server's processes after the round."""

    def add(self, server: Server, exchange: Exchange, asked: int) -> None:
        """Counts one request, or the reason why it failed."""
        stamps: list[float] = []
        prompt_tokens = output_tokens = None
        failure = exchange.failure
        for stamp, payload in exchange.events:
            if payload.strip() == b"[DONE]":
                continue
            try:
                event = json.loads(payload)
                if "error" in event:
                    failure = f"error event: {payload.decode()[:QUOTED_CHARS]}"
                has_token, prompt, output = server.read(event)
            except (ValueError, TypeError, AttributeError):
                failure = failure or f"not understood: {payload[:QUOTED_CHARS]!r}"
                break
            if has_token:
                stamps.append(stamp)
            prompt_tokens = prompt if prompt is not None else prompt_tokens
            output_tokens = output if output is not None else output_tokens
        if failure is None and not stamps:
            failure = "no token came"
        if failure is None and output_tokens not in (None, asked):
            failure = f"{output_tokens} tokens instead of {asked}: is ignore_eos honoured?"
        if failure is not None:
            self.failures.append(failure)
            return
        self.unverified += output_tokens is None
        self.output_tokens += asked
        self.prompt_tokens += prompt_tokens or 0
        self.events += len(stamps)
        self.ttft.append(stamps[0] - exchange.sent_at)
        self.gaps += [later - earlier for earlier, later in pairwise(stamps)]
        if asked > 1:
            self.per_token.append((stamps[-1] - stamps[0]) / (asked - 1))


async def play(server: Server, work: Work, seed: str, limit: float) -> Round:
    """One round of one work on one server, ended after `limit` seconds at the latest."""
    exchanges = [Exchange(server.request(p, work.output_tokens)) for p in work.prompts(seed)]
    waiting = iter(exchanges)

    async def client() -> None:
        for exchange in waiting:
            await exchange.run(server.host, server.port)

    cpu, began = time.process_time(), time.perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            await asyncio.gather(*(client() for _ in range(work.concurrency)))
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    result = Round(elapsed=elapsed, client_cpu=cpu, requests=work.requests)
    for exchange in exchanges:
        result.add(server, exchange, work.output_tokens)
    if server.pid is not None:
        result.memory = tree_memory(server.pid)
    return result


def tree_memory(root: int) -> int:
    """The proportional set size in bytes of process `root` and all below it (Linux only)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # a process may end while it is read
            # After the command's name, which may hold spaces and brackets: state, parent.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    total, tree = 0, [root]
    while tree:
        pid = tree.pop()
        tree += children.get(pid, [])
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    if total == 0:
        raise LoadError(f"no memory can be read of process {root}: is it alive, and yours?")
    return total


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def summarize(rounds: Sequence[Round]) -> dict[str, float | None]:
    """Rates and times are medians of the rounds; latencies are pooled over their requests."""
    ttft = [value for r in rounds for value in r.ttft]
    gaps = [value for r in rounds for value in r.gaps]
    per_token = [value for r in rounds for value in r.per_token]
    memory = [r.memory for r in rounds if r.memory is not None]
    rates = [r.output_tokens / r.elapsed for r in rounds]
    return {
        "requests": sum(r.requests for r in rounds),
        "failures": sum(len(r.failures) for r in rounds),
        "unverified": sum(r.unverified for r in rounds),
        "total_s": statistics.median(r.elapsed for r in rounds),
        "output_tokens_per_s": statistics.median(rates),
        "output_tokens_per_s_min": min(rates),
        "output_tokens_per_s_max": max(rates),
        "prompt_tokens_per_s": statistics.median(r.prompt_tokens / r.elapsed for r in rounds),
        "requests_per_s": statistics.median(len(r.ttft) / r.elapsed for r in rounds),
        "ttft_p50_s": percentile(ttft, 50),
        "ttft_p99_s": percentile(ttft, 99),
        "itl_p50_s": percentile(gaps, 50),
        "itl_p99_s": percentile(gaps, 99),
        "tpot_p50_s": percentile(per_token, 50),
        "events_per_token": sum(r.events for r in rounds)
        / max(1, sum(r.output_tokens for r in rounds)),
        "client_cpu_share": sum(r.client_cpu for r in rounds) / sum(r.elapsed for r in rounds),
        "memory_bytes": max(memory) if memory else None,
    }


COLUMNS = (
    ("requests", "requests", 1, 0),
    ("failed", "failures", 1, 0),
    ("total s", "total_s", 1, 2),
    ("out tok/s", "output_tokens_per_s", 1, 1),
    ("min", "output_tokens_per_s_min", 1, 1),
    ("max", "output_tokens_per_s_max", 1, 1),
    ("in tok/s", "prompt_tokens_per_s", 1, 0),
    ("req/s", "requests_per_s", 1, 2),
    ("TTFT p50 ms", "ttft_p50_s", 1e3, 1),
    ("p99", "ttft_p99_s", 1e3, 1),
    ("ITL p50 ms", "itl_p50_s", 1e3, 1),
    ("p99", "itl_p99_s", 1e3, 1),
    ("TPOT p50 ms", "tpot_p50_s", 1e3, 1),
    ("events/tok", "events_per_token", 1, 2),
    ("client CPU %", "client_cpu_share", 100, 1),
    ("PSS MB", "memory_bytes", 1e-6, 0),
)
RATIOS = (
    "output_tokens_per_s",
    "requests_per_s",
    "total_s",
    "ttft_p50_s",
    "itl_p50_s",
    "tpot_p50_s",
)
"""What is compared: the first server's summary divided by each other's."""

Summary = dict[str, float | None]


def compare(summaries: dict[str, Summary]) -> dict[str, Summary]:
    """{other server: {quantity: first server / other server}}; None where either is absent or 0."""
    (_, first), *others = summaries.items()

    def ratio(ours: float | None, theirs: float | None) -> float | None:
        return ours / theirs if ours and theirs else None

    return {name: {key: ratio(first[key], other[key]) for key in RATIOS} for name, other in others}


def show(work: str, summaries: dict[str, Summary], failures: dict[str, Counter[str]]) -> None:
    """Prints one work's table, ratios and reasons of failure."""
    shown = [c for c in COLUMNS if any(s[c[1]] is not None for s in summaries.values())]
    rows = [["server", *(title for title, *_ in shown)]]
    for name, summary in summaries.items():
        cells = [(summary[key], scale, digits) for _, key, scale, digits in shown]
        rows.append([name, *("-" if v is None else f"{v * s:.{d}f}" for v, s, d in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{work}: {describe(WORKS[work])}")
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    first = next(iter(summaries))
    for other, ratios in compare(summaries).items():
        text = ", ".join(f"{key} {value:.3f}" for key, value in ratios.items() if value is not None)
        print(f"{first} / {other}: {text or 'nothing to compare'}")
        if summaries[first]["failures"] or summaries[other]["failures"]:
            print("(requests failed: the work was not the same, so these ratios prove nothing)")
    for name, reasons in failures.items():
        for reason, count in reasons.most_common(3):
            print(f"{name}: {count} failed: {reason}")
        if summaries[name]["unverified"]:
            print(f"{name}: no usage from the server: its tokens are those asked for, unverified")


def describe(work: Work) -> str:
    prefix = f"{work.shared_words} shared words + " if work.shared_words else ""
    return (
        f"{work.requests} requests, {work.concurrency} at a time, prompts of {prefix}"
        f"{work.prompt_words} words, {work.output_tokens} tokens out"
    )


async def run(
    servers: Sequence[Server], options: argparse.Namespace, report: dict[str, Any]
) -> None:
    """All works on all servers; prints as it goes and adds each work to `report` when it is done.

    Raises:
        LoadError: a server cannot be reached, or every request of a round failed.
    """
    await asyncio.gather(*(reach(server) for server in servers))
    for work in options.work:
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for number in range(options.rounds + 1):
            for server in servers:
                seed = f"{options.seed}/{work}/{number}"
                result = await play(server, WORKS[work], seed, options.timeout)
                label = f"round {number}" if number else "warm-up"
                progress = f"{work} {label} {server.name}: {result.elapsed:.1f} s"
                print(f"{progress}, {len(result.failures)} failed", file=sys.stderr, flush=True)
                if len(result.failures) == result.requests:
                    raise LoadError(f"{server.name}, {work}: all failed: {result.failures[0]}")
                if number:
                    rounds[server.name].append(result)
        summaries = {name: summarize(played) for name, played in rounds.items()}
        failures = {
            name: Counter(reason for r in played for reason in r.failures)
            for name, played in rounds.items()
        }
        show(work, summaries, failures)
        report[work] = {
            "work": asdict(WORKS[work]),
            "summaries": summaries,
            "ratios": compare(summaries),
            "rounds": {name: [asdict(r) for r in played] for name, played in rounds.items()},
        }


async def reach(server: Server) -> None:
    """Raises LoadError unless the server takes a connection within 5 seconds."""
    if server.pid is not None:
        tree_memory(server.pid)
    try:
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_connection(server.host, server.port)
            writer.close()
    except (OSError, TimeoutError) as error:
        where = f"{server.host}:{server.port}"
        raise LoadError(
            f"server {server.name!r} does not answer at {where} ({error or 'timed out'}): "
            "start it and wait until it is ready, or correct --server"
        ) from error


def named(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` arguments as a dict."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or name in found:
            raise LoadError(f"{option} {pair!r}: give name=value, each name once")
        found[name] = value
    return found


def servers_of(options: argparse.Namespace) -> list[Server]:
    """The servers of the command line, in order."""
    urls = named("--server", options.server)
    models, pids = named("--model", options.model), named("--pid", options.pid)
    for name in (models | pids).keys() - urls.keys():
        raise LoadError(f"{name!r} is in --model or --pid but is no --server")
    servers = []
    for name, url in urls.items():
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if parts.scheme != "http" or not host:
            raise LoadError(f"--server {name}={url}: give http://HOST:PORT, or that with a route")
        path = parts.path.rstrip("/")
        if not path.endswith(("/v1/completions", "/generate_stream")):
            path += "/v1/completions"
        if name in pids and not pids[name].isdecimal():
            raise LoadError(f"--pid {name}={pids[name]}: give the number of a process")
        pid = int(pids[name]) if name in pids else None
        servers.append(Server(name, host, port, path, models.get(name), pid))
    return servers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Closed-loop load against servers, interleaved, with ratios.",
        epilog="works: " + "; ".join(f"{name}: {describe(work)}" for name, work in WORKS.items()),
    )
    parser.add_argument(
        "--server",
        action="append",
        required=True,
        metavar="NAME=URL",
        help="http://HOST:PORT (asked at /v1/completions), or a URL that ends in /generate_stream; "
        "repeat for each server, ratios are the first over the others",
    )
    parser.add_argument(
        "--work", action="append", choices=WORKS, help="repeat for several; all if not given"
    )
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, 1 to 1000")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds for one round of one server"
    )
    parser.add_argument("--seed", default=f"{random.randrange(2**32):08x}", help="of the prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every figure here")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=ID", help="`model` of the requests"
    )
    parser.add_argument(
        "--pid", action="append", default=[], metavar="NAME=PID", help="reports memory of its tree"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds <= 1000:
        parser.error(f"--rounds {options.rounds}: allowed are 1 to 1000")
    if not 0 < options.timeout <= 86400:
        parser.error(
            f"--timeout {options.timeout}: allowed are more than 0 and up to 86400 seconds"
        )
    options.work = list(dict.fromkeys(options.work or WORKS))
    return options


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 when a counted request failed, 2 when the run could not be made."""
    options = parse(arguments)
    report: dict[str, Any] = {}
    status = 0
    try:
        servers = servers_of(options)
        load = os.getloadavg()[0]
        print(f"seed {options.seed}; {os.cpu_count()} processors, load average {load:.1f} before")
        run_loop(run(servers, options, report))
    except LoadError as error:
        print(f"load.py: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    if options.json is not None:
        whole = {"seed": options.seed, "rounds": options.rounds, "works": report}
        options.json.write_text(json.dumps(whole, indent=1))
    failed = any(s["failures"] for work in report.values() for s in work["summaries"].values())
    return status or int(failed)


if __name__ == "__main__":
    sys.exit(main())

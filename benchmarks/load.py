"""Closed-loop load against one or more servers, interleaved in one run, with ratios.

    python benchmarks/load.py --server ours=http://127.0.0.1:8080 \\
        --server other=http://127.0.0.1:8001 --work streams16 --rounds 3

A work is a fixed number of requests kept at a fixed concurrency: a client sends its next request
when its last one ended. A round is one work on every server in turn (A B, A B, ...), so that a
machine which slows down slows all of them. The first round warms up and is not counted. A sweep
(`--streams 1,2,4`) is one such work for each number of streams, and `--plot` draws it.

- Greedy, `ignore_eos`, a fixed output length. Prompts are drawn from a seeded word list: the same
  for every server, new in every round and, as the default seed is random, new in every run. No
  prefix cache helps by accident; in the work `prefix` it helps on purpose.
- Tokens are counted by the server's usage object, and a request that did not give exactly the
  tokens asked for has failed. Events are never taken for tokens: servers may put several in one.
- A request has a connection of its own, and connecting is part of its time to first token (TTFT).
- Answers are stamped as they arrive and parsed after the round: the client shares the processors
  with the servers, so its own share is measured and printed.

Only the standard library is needed, and matplotlib for a plot; uvloop is used where it is
installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if not __package__:  # run as a script, whose folder is in the path, and not the one above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.load_client import LoadError, Server
from benchmarks.load_plot import check_plot, draw
from benchmarks.load_report import compare, show, summarize
from benchmarks.load_rounds import Round, play, tree_memory
from benchmarks.load_works import MAX_STREAMS, WORKS, Work, describe, sweep_work


async def run(
    servers: Sequence[Server], options: argparse.Namespace, report: dict[str, Any]
) -> None:
    """Run all works on all servers, then the sweep; print progress.

    Adds each work to `report["works"]` when it is done, each point to `report["sweep"]`, under the
    number of its streams.

    Raises:
        LoadError: a server cannot be reached, or every request of a round failed.
    """
    await asyncio.gather(*(reach(server) for server in servers))
    for name in options.work:
        work = WORKS[name]
        report["works"][name] = await measure(servers, name, work, work, options)
    for streams in options.streams:
        work = sweep_work(streams)
        # One request a stream warms up well enough, and a sweep is long.
        warm_up = replace(work, requests=streams)
        point = await measure(servers, f"{streams} streams", work, warm_up, options)
        report["sweep"][str(streams)] = point


async def measure(
    servers: Sequence[Server], name: str, work: Work, warm_up: Work, options: argparse.Namespace
) -> dict[str, Any]:
    """Run one work on all servers, round by round: print it, and return its figures.

    Raises:
        LoadError: every request of a round failed.
    """
    rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
    for number in range(options.rounds + 1):
        for server in servers:
            seed = f"{options.seed}/{name}/{number}"
            result = await play(server, work if number else warm_up, seed, options.timeout)
            label = f"round {number}" if number else "warm-up"
            progress = f"{name} {label} {server.name}: {result.elapsed:.1f} s"
            print(f"{progress}, {len(result.failures)} failed", file=sys.stderr, flush=True)
            if len(result.failures) == result.requests:
                raise LoadError(f"{server.name}, {name}: all failed: {result.failures[0]}")
            if number:
                rounds[server.name].append(result)
    summaries = {server: summarize(played) for server, played in rounds.items()}
    failures = {
        server: Counter(reason for r in played for reason in r.failures)
        for server, played in rounds.items()
    }
    show(name, work, summaries, failures)
    return {
        "work": asdict(work),
        "summaries": summaries,
        "ratios": compare(summaries),
        "rounds": {server: [asdict(r) for r in played] for server, played in rounds.items()},
    }


async def reach(server: Server) -> None:
    """Raise LoadError unless the server takes a connection within 5 seconds."""
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
    """Parse `name=value` arguments to a dict."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or name in found:
            raise LoadError(f"{option} {pair!r}: give name=value, each name once")
        found[name] = value
    return found


def servers_of(options: argparse.Namespace) -> list[Server]:
    """Return the servers of the command line, in order."""
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


def streams_of(text: str) -> list[int]:
    """Parse numbers of streams from `1,2,4`, each once, in ascending order."""
    try:
        numbers = sorted({int(number) for number in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not 1 <= numbers[0] <= numbers[-1] <= MAX_STREAMS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give numbers from 1 to {MAX_STREAMS} with commas between, such as 1,2,4"
        )
    return numbers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Closed-loop load against servers, interleaved, with ratios.",
        epilog="works: " + "; ".join(f"{name}: {describe(work)}" for name, work in WORKS.items()),
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="http://HOST:PORT (asked at /v1/completions), or a URL that ends in /generate_stream; "
        "repeat for each server, ratios are the first over the others",
    )
    parser.add_argument(
        "--work",
        action="append",
        choices=WORKS,
        help="repeat for several; all if neither this nor --streams is given",
    )
    parser.add_argument(
        "--streams",
        type=streams_of,
        default=[],
        metavar="N,N,...",
        help="a sweep: the streaming work at each of these numbers of streams",
    )
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, 1 to 1000")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds for one round of one server"
    )
    parser.add_argument("--seed", default=f"{random.randrange(2**32):08x}", help="of the prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every figure here")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draws the sweep here, as .svg or .png"
    )
    parser.add_argument(
        "--replot", type=Path, metavar="FILE", help="draws the sweep kept in this --json, no load"
    )
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
    if options.replot is not None and options.plot is None:
        parser.error("--replot needs --plot: where to draw")
    if options.plot is not None and options.replot is None and not options.streams:
        parser.error("--plot draws a sweep: give --streams, or --replot with one that was kept")
    if not options.server and options.replot is None:
        parser.error("--server is required")
    works = options.work or ([] if options.streams else WORKS)
    options.work = list(dict.fromkeys(works))
    return options


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def replot(options: argparse.Namespace) -> int:
    """Draw a saved sweep. Return the exit status."""
    try:
        check_plot(options.plot)
        try:
            kept = json.loads(options.replot.read_bytes())
        except (OSError, ValueError) as error:
            raise LoadError(f"--replot {options.replot}: {error}") from error
        draw(kept, options.plot)
    except LoadError as error:
        print(f"load.py: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit status: 0, 1 when a counted request failed, 2 when the run
    was impossible."""
    options = parse(arguments)
    if options.replot is not None:
        return replot(options)
    given = sys.argv[1:] if arguments is None else arguments
    report: dict[str, Any] = {
        "seed": options.seed,
        "rounds": options.rounds,
        "command": shlex.join(["python", "benchmarks/load.py", *given]),
        "date": date.today().isoformat(),
        "works": {},
        "sweep": {},
    }
    status = 0
    try:
        if options.plot is not None:
            check_plot(options.plot)
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
        options.json.write_text(json.dumps(report, indent=1))
    if options.plot is not None and report["sweep"]:
        draw(report, options.plot)
    measured = [*report["works"].values(), *report["sweep"].values()]
    failed = any(s["failures"] for work in measured for s in work["summaries"].values())
    return status or int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""The cost of grammars: masks, throughput, the first token, and other clients' tokens.

    python -m benchmarks.grammar --work masks
    python -m benchmarks.grammar --server http://127.0.0.1:8080

`masks` fills masks as a worker does, on the embedded model's tokenizer, along texts that follow the
grammar at random, and each text is the first one with its grammar. The others ask a running server
at `/generate_stream`, with and without grammars in turn: `throughput` 16 streams of which every one
is constrained by a regular expression that cannot end, or by one that must be brought to its end,
`first-token` a schema of 100 properties that is new each time, and `hostile` eight streams of free
text while two requests a second come with harmful grammars, or with benign ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from itertools import pairwise
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks.grammar_texts import REGEXES, UNENDING, benign, hostile, wide_schema
from benchmarks.load_client import Exchange, LoadError
from benchmarks.load_works import WORDS

STREAMS = 16
TOKENS = 128
FREE: dict[str, Any] = {}
ATTACKS_PER_SECOND = 2
PHASE_SECONDS = 15.0
PAUSE = 2.0
JUMP_SECONDS = 0.001
"""A token that follows this soon was forced together with the one before; no step takes less."""


class Client:
    """Sends requests to one server."""

    def __init__(self, url: str, seed: int) -> None:
        split = urlsplit(url)
        if split.hostname is None:
            raise LoadError(f"--server is http://HOST:PORT, got {url!r}")
        self.host, self.port = split.hostname, split.port or 80
        self.draw = random.Random(seed)

    async def stream(self, parameters: dict[str, Any], tokens: int = TOKENS) -> Exchange:
        """Stream one request with a new prompt. Errors are in the exchange's `failure`."""
        prompt = " ".join(self.draw.choices(WORDS, k=32))
        given = {"max_new_tokens": tokens, "do_sample": False, **parameters}
        payload = json.dumps({"inputs": prompt, "parameters": given}).encode()
        head = (
            f"POST /generate_stream HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
            "Connection: close\r\n\r\n"
        )
        exchange = Exchange(head.encode() + payload)
        await exchange.run(self.host, self.port)
        return exchange


def checked(exchange: Exchange) -> list[float]:
    """Return the times of its tokens. Raises LoadError if it failed."""
    if exchange.failure is not None:
        raise LoadError(exchange.failure)
    return [stamp for stamp, payload in exchange.events if b'"token"' in payload]


def n_jumped(stamps: list[float]) -> int:
    """Return how many of the tokens came together with the one before."""
    return sum(later - earlier < JUMP_SECONDS for earlier, later in pairwise(stamps))


async def throughput(client: Client, rounds: int) -> None:
    """Measure tokens a second of 16 streams, by constraint. Forced tokens are not counted."""
    ending = REGEXES["lower case"]
    works: dict[str, dict[str, Any]] = {"free": {"ignore_eos": True}}
    for name, pattern in (*UNENDING.items(), ("lower case, ends", ending)):
        works[name] = {"grammar": {"type": "regex", "value": pattern}}
    rates: dict[str, list[float]] = {name: [] for name in works}
    jumped = dict.fromkeys(works, 0)
    for turn in range(rounds + 1):
        for name, found in rates.items():
            await asyncio.sleep(PAUSE)
            began = time.perf_counter()
            exchanges = await asyncio.gather(
                *(client.stream(works[name]) for _ in range(2 * STREAMS))
            )
            elapsed = time.perf_counter() - began
            n_tokens = 0
            for exchange in exchanges:
                stamps = checked(exchange)
                least = TOKENS // 2 if name == "lower case, ends" else TOKENS
                if not least <= len(stamps) <= TOKENS:
                    raise LoadError(f"{name}: {len(stamps)} tokens came, of {least} to {TOKENS}")
                n_tokens += len(stamps) - n_jumped(stamps)
                jumped[name] += n_jumped(stamps)
            if turn:
                found.append(n_tokens / elapsed)
    n_texts = 2 * STREAMS * (rounds + 1)
    for name, found in rates.items():
        share = median(found) / median(rates["free"])
        print(
            f"{name:16} {median(found):8.0f} tok/s  {share:6.1%} of free, "
            f"{jumped[name] / n_texts:5.1f} forced tokens a text",
            flush=True,
        )


async def first_token(client: Client, rounds: int) -> None:
    """Measure milliseconds to the first token, with a new wide schema and without."""
    times: dict[str, list[float]] = {"free": [], "100 properties": []}
    for turn in range(7 * rounds + 1):
        for name, found in times.items():
            grammar = {"type": "json", "value": wide_schema(client.draw)}
            exchange = await client.stream(FREE if name == "free" else {"grammar": grammar}, 4)
            stamps = checked(exchange)
            if turn:
                found.append(1e3 * (stamps[0] - exchange.sent_at))
    for name, found in times.items():
        print(f"{name:16} first token p50 {median(found):6.1f} ms, most {max(found):6.1f} ms")
    later = median(times["100 properties"]) - median(times["free"])
    print(f"{'later by':16} {later:6.1f} ms", flush=True)


async def attacks(client: Client, rounds: int) -> None:
    """Measure the 99th percentile of the times between other clients' tokens."""
    gaps: dict[str, list[float]] = {"benign": [], "hostile": []}
    answers: dict[str, dict[str, int]] = {name: {} for name in gaps}
    for turn in range(2 * rounds):
        for name in gaps if turn % 2 == 0 else reversed(gaps):
            await asyncio.sleep(PAUSE)
            await _phase(
                client, hostile if name == "hostile" else benign, gaps[name], answers[name]
            )
    for name, found in gaps.items():
        print(
            f"{name:16} ITL p50 {1e3 * median(found):6.1f} ms, p99 {1e3 * _p99(found):6.1f} ms; "
            f"answers {answers[name]}"
        )
    print(f"{'ratio of p99':16} {_p99(gaps['hostile']) / _p99(gaps['benign']):6.2f}", flush=True)


async def _phase(client: Client, attack: Any, gaps: list[float], answers: dict[str, int]) -> None:
    """Run eight streams of free text beside two attacks a second."""
    ends = time.perf_counter() + PHASE_SECONDS

    async def listen() -> None:
        while time.perf_counter() < ends:
            stamps = checked(await client.stream({"ignore_eos": True}))
            if len(stamps) != TOKENS:
                raise LoadError(f"{len(stamps)} tokens came, and {TOKENS} were asked for")
            gaps.extend(later - earlier for earlier, later in pairwise(stamps))

    async def one() -> None:
        exchange = await client.stream({"grammar": attack(client.draw)}, 32)
        refused = any(b'"error"' in payload for _, payload in exchange.events)
        kind = "refused" if refused else "answered"
        kind = kind if exchange.failure is None else exchange.failure[:10]
        answers[kind] = answers.get(kind, 0) + 1

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(listen())
        while time.perf_counter() < ends:
            group.create_task(one())
            await asyncio.sleep(1 / ATTACKS_PER_SECOND)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


async def _ask(arguments: argparse.Namespace) -> None:
    client = Client(arguments.server, arguments.seed)
    works = {"throughput": throughput, "first-token": first_token, "hostile": attacks}
    for name in arguments.work or works:
        if name in works:
            print(f"-- {name}")
            await works[name](client, arguments.rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--server", help="where it listens, e.g. http://127.0.0.1:8080")
    parser.add_argument(
        "--work", action="append", choices=("masks", "throughput", "first-token", "hostile")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    arguments = parser.parse_args()
    if arguments.server is None and arguments.work != ["masks"]:
        parser.error("--server is needed for all but --work masks")
    try:
        if "masks" in (arguments.work or ()):
            from benchmarks.grammar_masks import masks  # it needs what a worker needs

            masks(arguments.rounds)
        if arguments.server is not None:
            asyncio.run(_ask(arguments))
    except LoadError as error:
        print(f"grammar: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What speculation gains: fixed prompts on servers with and without it, in turns, with ratios.

    python benchmarks/speculation.py --server with=http://127.0.0.1:8080 \\
        --server without=http://127.0.0.1:8081 --rounds 5

The first server is compared with each other one. `repeating` are prompts whose answers repeat much
of them (edit this, extract from this, continue this), greedy, one at a time; `chat` are questions
at temperature 0.7, seeded, at each of `--streams` at a time. A round is one work on every server in
turn; the first one warms up and is not counted. Answers must be the same text on all servers.

Each request comes from an address of its own (127.x.y.z), so that to the server it is another
client: drafts out of its own earlier answers to the same prompt would be no measurement.

`own` is the share of answered tokens that end eight words which the answer had before and the
prompt had not: what is gained there comes from the model's repetitions of itself. Only the standard
library is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

if not __package__:  # run as a script, whose folder is in the path, and not the one above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.speculation_prompts import CHATS, REPEATING, Prompt

WORDS = 8
"""Length of a repetition."""


class Answer(NamedTuple):
    text: str
    n_tokens: int
    n_accepted: int
    n_rejected: int
    seconds: float


class Server(NamedTuple):
    name: str
    host: str
    port: int


def addresses() -> Iterator[str]:
    """Return loopback addresses, each once."""
    for number in itertools.count(1):
        yield f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"


async def ask(server: Server, prompt: Prompt, address: str, seed: int | None) -> Answer:
    """Return the answer to a prompt: greedy, or seeded at temperature 0.7."""
    body: dict[str, Any] = {"max_tokens": prompt.output_tokens, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    body |= {"temperature": 0.0} if seed is None else {"temperature": 0.7, "seed": seed}
    if prompt.chat:
        body["messages"] = [{"role": "user", "content": prompt.text}]
    else:
        body["prompt"] = prompt.text
    payload = json.dumps(body).encode()
    path = "/v1/chat/completions" if prompt.chat else "/v1/completions"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(
        server.host, server.port, local_addr=(address, 0)
    )
    writer.write(head.encode() + payload)
    raw = await reader.read(-1)
    seconds = time.perf_counter() - began
    writer.close()
    return read(raw, seconds)


def read(raw: bytes, seconds: float) -> Answer:
    """Return the answer in a whole reply of events. Raises SystemExit for another one."""
    text, usage = "", None
    for line in raw.split(b"\n"):
        if not line.startswith(b"data: {") and not line.startswith(b"data:{"):
            continue
        event = json.loads(line.partition(b":")[2])
        for choice in event.get("choices") or ():
            text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        usage = event.get("usage") or usage
    if usage is None:
        raise SystemExit(f"no usage in the answer: {raw[:300]!r}")
    details = usage.get("completion_tokens_details") or {}
    return Answer(
        text,
        usage["completion_tokens"],
        details.get("accepted_prediction_tokens") or 0,
        details.get("rejected_prediction_tokens") or 0,
        seconds,
    )


def own_repetitions(prompt: str, answer: str) -> float:
    """Return the share of an answer's words that repeat the answer and not the prompt."""
    words, seen = answer.split(), prompt.split()
    known = {tuple(seen[at : at + WORDS]) for at in range(len(seen) - WORDS + 1)}
    before: set[tuple[str, ...]] = set()
    n = 0
    for at in range(len(words) - WORDS + 1):
        here = tuple(words[at : at + WORDS])
        n += here in before and here not in known
        before.add(here)
    return n / max(1, len(words))


async def one_by_one(server: Server, fresh: Iterator[str]) -> list[Answer]:
    return [await ask(server, prompt, next(fresh), None) for prompt in REPEATING]


async def at_once(server: Server, fresh: Iterator[str], streams: int) -> tuple[list[Answer], float]:
    """Ask all chats, twice where there are more streams; return the answers and the seconds."""
    n = max(len(CHATS), 2 * streams) if streams > 1 else len(CHATS) // 2
    room = asyncio.Semaphore(streams)

    async def one(number: int) -> Answer:
        async with room:
            return await ask(server, CHATS[number % len(CHATS)], next(fresh), number)

    began = time.perf_counter()
    answers = await asyncio.gather(*(one(number) for number in range(n)))
    return list(answers), time.perf_counter() - began


async def repeating(servers: Sequence[Server], rounds: int, fresh: Iterator[str]) -> None:
    """Measure the prompts whose answers repeat them, and print what came."""
    found: dict[str, list[list[Answer]]] = {server.name: [] for server in servers}
    for number in range(rounds + 1):
        for server in servers:
            answers = await one_by_one(server, fresh)
            if number:
                found[server.name].append(answers)
    first, *others = (server.name for server in servers)
    print(f"\nrepeating, one at a time, {rounds} rounds: tokens a second")
    names = " ".join(f"{name:>12}" for name in found)
    print(f"{'':20} tokens {names} {'accepted':>9} {'rejected':>9} {'own':>5}  same")
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for at, prompt in enumerate(REPEATING):
        rates = {
            name: statistics.median(one[at].n_tokens / one[at].seconds for one in played)
            for name, played in found.items()
        }
        answer = found[first][0][at]
        same = all(one[at].text == answer.text for played in found.values() for one in played)
        for name in others:
            ratios[name].append(rates[first] / rates[name])
        own = own_repetitions(prompt.text, answer.text)
        shown = " ".join(f"{rate:12.1f}" for rate in rates.values())
        print(
            f"{prompt.name:20} {answer.n_tokens:6} {shown} {answer.n_accepted:9} "
            f"{answer.n_rejected:9} {own:5.0%}  {'yes' if same else 'NO'}"
        )
    for name in others:
        whole = statistics.median(
            total(a) / total(b) for a, b in zip(found[first], found[name], strict=True)
        )
        print(
            f"{first} over {name}: geometric mean {statistics.geometric_mean(ratios[name]):.2f}, "
            f"least {min(ratios[name]):.2f}, all tokens over all seconds {whole:.2f}"
        )


def total(answers: Sequence[Answer]) -> float:
    """Return the tokens a second of answers that came one after the other."""
    return sum(one.n_tokens for one in answers) / sum(one.seconds for one in answers)


async def chat(servers: Sequence[Server], rounds: int, streams: int, fresh: Iterator[str]) -> None:
    """Measure chats, and print what came."""
    rates: dict[str, list[float]] = {server.name: [] for server in servers}
    texts: dict[str, list[str]] = {}
    gained: dict[str, list[Answer]] = {}
    for number in range(rounds + 1):
        for server in servers:
            answers, seconds = await at_once(server, fresh, streams)
            texts[server.name] = [one.text for one in answers]
            gained[server.name] = answers
            if number:
                rates[server.name].append(sum(one.n_tokens for one in answers) / seconds)
    first, *others = rates
    accepted = sum(one.n_accepted for one in gained[first])
    rejected = sum(one.n_rejected for one in gained[first])
    n_tokens = sum(one.n_tokens for one in gained[first])
    print(f"\nchat, {streams} at a time, {rounds} rounds: tokens a second (median)")
    for name, found in rates.items():
        each = " ".join(f"{rate:.0f}" for rate in found)
        print(f"{name:20} {statistics.median(found):8.1f}  ({each})")
    print(f"{first}: of {n_tokens} tokens {accepted} accepted drafts, {rejected} rejected")
    for name in others:
        pairs = [a / b for a, b in zip(rates[first], rates[name], strict=True)]
        n_same = sum(a == b for a, b in zip(texts[first], texts[name], strict=True))
        print(
            f"{first} over {name}: {statistics.median(pairs):.3f} (median of the rounds' ratios), "
            f"{n_same} of {len(texts[first])} texts the same"
        )


async def run(options: argparse.Namespace) -> None:
    servers = []
    for given in options.server:
        name, _, url = given.partition("=")
        parts = urlsplit(url)
        servers.append(Server(name, parts.hostname or "127.0.0.1", parts.port or 80))
    fresh = addresses()
    if "repeating" in options.work:
        await repeating(servers, options.rounds, fresh)
    if "chat" in options.work:
        for streams in options.streams:
            await chat(servers, options.rounds, streams, fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--work", action="append", choices=("repeating", "chat"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    options = parser.parse_args()
    options.work = options.work or ["repeating", "chat"]
    asyncio.run(run(options))


if __name__ == "__main__":
    main()

"""What images cost: the same image again, and texts beside images that are being prepared.

    python -m benchmarks.made_llava /tmp/made-llava
    tgi-async serve --model-id /tmp/made-llava
    python benchmarks/images.py --server http://127.0.0.1:8080

`again`: a question about a new image of 640x480, then the same one: the time to the first token of
both, and what the server's counters say of the second. `beside`: eight streams of text, by turns
alone and beside two images a second that `/tokenize` has to prepare and count, so that no step has
tokens of images: what is between two tokens then is what preparation takes from others.

Pillow makes the images; all else is the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import random
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

if not __package__:  # run as a script, whose folder is in the path, and not the one above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.load_client import Exchange

COUNTERS = ('tgi_async_images{result="prepared"}', "tgi_async_encoded_images")


def photo(seed: int, width: int = 640, height: int = 480) -> str:
    """Return a new image as a data: URL: colours that run into each other, and noise."""
    draw = random.Random(seed)
    small = Image.new("RGB", (16, 12))
    small.putdata([tuple(draw.randrange(256) for _ in range(3)) for _ in range(16 * 12)])
    grown = small.resize((width, height), Image.Resampling.BICUBIC)
    noise = Image.effect_noise((width, height), 20).convert("RGB")
    content = io.BytesIO()
    Image.blend(grown, noise, 0.1).save(content, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


class Target:
    """A server."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    async def stream(self, content: Any, n_tokens: int) -> list[float]:
        """Return the seconds from a chat's begin to each of its events with a token."""
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": n_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        payload = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
            "Connection: close\r\n\r\n"
        )
        exchange = Exchange(head.encode() + payload)
        await exchange.run(self._host, self._port)
        if exchange.failure:
            raise SystemExit(exchange.failure)
        times = []
        for at, event in exchange.events:
            if event.strip() == b"[DONE]":
                continue
            chunk = json.loads(event)
            if "choices" not in chunk:
                raise SystemExit(f"the server says: {event.decode(errors='replace')[:300]}")
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                times.append(at - exchange.sent_at)
        return times

    def count(self, url: str) -> None:
        """Have the tokens of a prompt with an image counted."""
        body = json.dumps({"inputs": f"![]({url})What is this?"}).encode()
        request = urllib.request.Request(
            f"{self._url}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            answer.read()

    def counters(self) -> list[int]:
        with urllib.request.urlopen(f"{self._url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        values: dict[str, str] = dict(
            line.rsplit(" ", 1) for line in lines if not line.startswith("#")
        )
        return [int(float(values[name])) for name in COUNTERS]


def asked(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What do you see?"},
    ]


async def again(server: Target, rounds: int) -> None:
    ratios, firsts, seconds = [], [], []
    for number in range(rounds + 1):
        content = asked(photo(number))
        first = (await server.stream(content, 4))[0]
        before = server.counters()
        second = (await server.stream(content, 4))[0]
        done = [now - then for now, then in zip(server.counters(), before, strict=True)]
        if any(done):
            print(f"the second time, {done[0]} images were prepared and {done[1]} encoded")
        if number:  # the first one warms up
            firsts.append(first)
            seconds.append(second)
            ratios.append(second / first)
    print(
        f"again: new image {1000 * statistics.median(firsts):.0f} ms to the first token, the same "
        f"again {1000 * statistics.median(seconds):.0f} ms: {statistics.median(ratios):.2f} of it"
    )


async def gaps(server: Target, images: Sequence[str], n_tokens: int) -> list[float]:
    """Return the seconds between tokens of eight texts, beside two of these images a second."""
    loop = asyncio.get_running_loop()
    questions = [f"Write a long story about the number {number}." for number in range(8)]
    texts = [asyncio.create_task(server.stream(text, n_tokens)) for text in questions]
    counting = []
    for url in images:
        if all(text.done() for text in texts):
            break
        counting.append(loop.run_in_executor(None, server.count, url))
        await asyncio.sleep(0.5)
    found = []
    for text in texts:
        times = await text
        found += [late - early for early, late in itertools.pairwise(times)]
    await asyncio.gather(*counting)
    return found


async def beside(server: Target, rounds: int, n_tokens: int) -> None:
    made = iter(range(1000, 100_000))
    alone_all, beside_all, ratios = [], [], []
    for number in range(rounds + 1):
        images = [photo(next(made)) for _ in range(40)]
        alone = sorted(await gaps(server, (), n_tokens))
        crowded = sorted(await gaps(server, images, n_tokens))
        if number:
            p99 = [one[int(0.99 * len(one))] for one in (alone, crowded)]
            alone_all.append(p99[0])
            beside_all.append(p99[1])
            ratios.append(p99[1] / p99[0])
    print(
        f"beside: p99 between tokens {1000 * statistics.median(alone_all):.1f} ms alone, "
        f"{1000 * statistics.median(beside_all):.1f} ms beside two images a second: "
        f"{statistics.median(ratios):.2f} times (of rounds: "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


async def measure(options: argparse.Namespace) -> None:
    server = Target(options.server)
    if "again" in options.work:
        await again(server, options.rounds)
    if "beside" in options.work:
        await beside(server, options.rounds, options.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="benchmarks/images.py")
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=300, help="of each text, in `beside`")
    parser.add_argument(
        "--work", nargs="+", choices=("again", "beside"), default=["again", "beside"]
    )
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()

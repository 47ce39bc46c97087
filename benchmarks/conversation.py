"""A long conversation, whose next turn should take the time of that turn alone.

    python -m benchmarks.conversation
    python -m benchmarks.conversation --window 1024

The whole conversation is sent with every turn, as clients of a chat do, and its keys and values are
found in the prefix cache. What is left to grow with it: reading, rendering, tokenizing and looking
up its text, and attention to it. The server is the real one; the model is a tiny Llama of random
weights with room for 131,072 tokens and the embedded model's tokenizer and template, so that what
is not the model shows. With a sliding window, attention does not grow either. Its answers are
babble that does not tokenize back into itself, so those in the conversation are made up.

Each row is one request for one token: `ttft` is the time until its answer is there, seen by the
client, and `validation` (body, template, tokenizer), `queue` and `inference` are the server's own
measure of its parts; `forward` is the part of `inference` that the model takes. `template` and
`tokenize` are the same two things done once more in this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.load_works import WORDS
from benchmarks.served import serving
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer
from workers.models.embedded import prepare_embedded

MOST_TOKENS = 131_072
PAYLOAD_LIMIT = 16_000_000
FLAGS = (
    *("--payload-limit", f"{PAYLOAD_LIMIT}"),
    *("--max-total-tokens", f"{MOST_TOKENS}"),
    *("--model-impl", "fused"),
)
HISTORY_TURNS = 10
"""Turns in which the conversation reaches its length."""
QUESTION, ANSWER = 32, 64
"""Words of a question and an answer, each of them a token."""
SUMS = {
    "hit": "tgi_async_cached_tokens_sum",
    "validation": "tgi_request_validation_duration_sum",
    "queue": "tgi_request_queue_duration_sum",
    "inference": "tgi_request_inference_duration_sum",
    "forward": 'tgi_batch_forward_duration_sum{method="prefill"}',
}
"""The server's counters, by the row's field."""

Messages = list[dict[str, str]]


class Row(msgspec.Struct):
    """One request. Times in milliseconds."""

    name: str
    prompt: int
    """Tokens of the prompt."""
    hit: float
    """Prompt tokens found in the prefix cache."""
    ttft: float
    validation: float
    queue: float
    inference: float
    forward: float
    template: float
    tokenize: float


def make_model(folder: Path, window: int) -> None:
    """Write the model into `folder`: two layers, two heads of 32 that share their keys.

    `window` is that of attention, in tokens; 0: none, as in a Llama.
    """
    import torch
    from transformers import GenerationConfig, MistralConfig, MistralForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    embedded = prepare_embedded()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=Tokenizer.from_folder(folder).vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MOST_TOKENS,
        sliding_window=window or None,
    )
    model = MistralForCausalLM(config).bfloat16()
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)


class Server:
    """A running server, over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, messages: Messages) -> tuple[float, int]:
        """Return the seconds until one token arrived, and the tokens of the prompt."""
        body = json.dumps({"messages": messages, "max_tokens": 1, "temperature": 0}).encode()
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        reply = self._connection.getresponse()
        answer = reply.read()
        seconds = time.perf_counter() - began
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {answer.decode()[:1000]}")
        return seconds, json.loads(answer)["usage"]["prompt_tokens"]

    def sums(self) -> dict[str, float]:
        """Return the server's counters, by the names of `SUMS`."""
        self._connection.request("GET", "/metrics")
        lines = self._connection.getresponse().read().decode().splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {field: float(found.get(name, 0)) for field, name in SUMS.items()}


class Bench:
    """Sends requests, and measures the parts of their times."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._tokenizer = Tokenizer.from_folder(folder)
        template = ChatTemplate.from_folder(folder, self._tokenizer.special_tokens)
        assert template is not None
        self._template = template
        self._template.render([{"role": "user", "content": "Hello"}])  # starts its process

    def row(self, name: str, messages: Messages) -> Row:
        before = self._server.sums()
        ttft, prompt = self._server.ask(messages)
        after = self._server.sums()
        parts = {field: after[field] - before[field] for field in SUMS}
        hit = parts.pop("hit")
        began = time.perf_counter()
        text = self._template.render(messages)
        rendered = time.perf_counter()
        self._tokenizer.encode(text, add_special_tokens=False)
        tokenized = time.perf_counter()
        seconds = parts | {
            "ttft": ttft,
            "template": rendered - began,
            "tokenize": tokenized - rendered,
        }
        times = {field: round(1000 * value, 2) for field, value in seconds.items()}
        return Row(name, prompt, hit, **times)

    def close(self) -> None:
        self._template.close()


def words(draw: random.Random, n: int) -> str:
    return " ".join(draw.choices(WORDS, k=n))


def converse(bench: Bench, n_tokens: int, n_turns: int) -> Iterator[Row]:
    """Grow a conversation to `n_tokens`; then measure `n_turns` more turns, and all of it without
    the cache."""
    draw = random.Random()
    system = {"role": "system", "content": f"You are a {words(draw, 8)}."}
    messages = [system]

    def add(role: str, n: int) -> None:
        messages.append({"role": role, "content": words(draw, n)})

    yield bench.row("first request", [{"role": "user", "content": words(draw, QUESTION)}])
    for number in range(HISTORY_TURNS):
        if number:
            add("assistant", ANSWER)
        add("user", n_tokens // HISTORY_TURNS)
        yield bench.row(f"history {number + 1}", messages)
    add("assistant", ANSWER)
    for number in range(n_turns):
        if number:
            add("assistant", ANSWER)
        add("user", QUESTION)
        yield bench.row(f"turn {number + 1}", messages)
    for number in range(n_turns):
        latest = [{"role": role, "content": words(draw, n)} for role, n in LAST_TURN]
        yield bench.row(f"alone {number + 1}", latest)
    messages[0] = {"role": "system", "content": f"You are another {words(draw, 8)}."}
    yield bench.row("cold", messages)


LAST_TURN = (("system", 1), ("assistant", ANSWER), ("user", QUESTION))
"""Tokens that a warm turn has to compute: the answer before it is the client's text, and new
too."""


def ratios(rows: list[Row]) -> str:
    def typical(name: str, field: str) -> float:
        return float(median(getattr(row, field) for row in rows if row.name.startswith(name)))

    warm, alone, cold = (typical(name, "ttft") for name in ("turn", "alone", "cold"))
    beside = [typical(name, "ttft") - typical(name, "forward") for name in ("turn", "alone")]
    return (
        f"median ttft: a turn {warm:.1f} ms, the same turn alone {alone:.1f} ms ({warm / alone:.2f}"
        f" times), all cold {cold:.0f} ms ({cold / warm:.0f} times a turn)\n"
        f"beside the forward pass: a turn {beside[0]:.1f} ms, alone {beside[1]:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A long conversation, and its next turn.")
    parser.add_argument("--tokens", type=int, default=100_000, help="before the turns measured")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--window", type=int, default=0, help="of attention, in tokens; 0: none")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    given = parser.parse_args()
    if not 1000 <= given.tokens <= MOST_TOKENS - 20_000 or not 1 <= given.turns <= 50:
        parser.error(f"--tokens is 1000 to {MOST_TOKENS - 20_000}, --turns is 1 to 50")
    rows: list[Row] = []
    fields = Row.__struct_fields__
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "model")
        folder.mkdir()
        make_model(folder, given.window)
        with serving(folder, Path(made, "log"), FLAGS) as served:
            bench = Bench(Server(served.port), folder)
            try:
                if not given.json:
                    print(" ".join(f"{field:>13}" for field in fields), "(ms)")
                for row in converse(bench, given.tokens, given.turns):
                    rows.append(row)
                    if not given.json:
                        cells = (getattr(row, field) for field in fields)
                        print(" ".join(f"{cell:>13}" for cell in cells), flush=True)
            finally:
                bench.close()
    print(msgspec.json.encode(rows).decode() if given.json else ratios(rows))


if __name__ == "__main__":
    main()

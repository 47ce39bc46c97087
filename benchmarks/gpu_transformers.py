"""The same streams through transformers' continuous batching, in process.

The prompts are of the same words, as ids; there is no server, no text and no HTTP around it. As
many requests run at once as there are streams, and the next one comes when one has ended. Making
the manager, its CUDA graphs and a first round are not counted.

It is asked twice: with CUDA graphs and asynchronous batching (`graphs`), and as it chooses by
itself (`own`), because without flash-attn it chooses neither, and pads less. `attention` says what
it attends with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
)
from transformers.generation.continuous_batching.utils import WorkloadHints

from benchmarks.gpu_report import Report
from benchmarks.load_works import Work

CHOICES: dict[str, dict[str, Any]] = {
    "graphs": {"use_cuda_graph": True, "use_async_batching": True},
    "own": {},
}
COLUMNS = {
    "streams": "d",
    "choice": "",
    "tok/s": ".0f",
    "seconds": ".1f",
    "tokens": "d",
    "graphs": "",
    "async": "",
    "attention": "",
}
ON_CPU = {"num_blocks": 64, "max_batch_tokens": 256}
"""It would take more than half of the machine's memory."""
WARM_TOKENS = 16
POLL_SECONDS = 1.0
STOP_SECONDS = 20.0


class Unfinished(Exception):
    """A run stopped, or took too long; the message says which."""


def run(folder: Path, works: list[Work], device: str, seconds: float, report: Report) -> None:
    """Run each work by each choice; a round is ended after `seconds` at the latest."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    began = time.perf_counter()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = model.to(device).eval()
    report.note(f"transformers loaded in {time.perf_counter() - began:.1f} s")
    table = report.table("transformers", COLUMNS)
    for work in works:
        for choice in CHOICES:
            try:
                table.add(_measure(model, tokenizer, work, choice, seconds))
            except (Unfinished, RuntimeError, ValueError) as error:
                report.note(f"{work.concurrency} streams, {choice}: {error}")
            if device == "cuda":
                torch.cuda.empty_cache()


def _measure(
    model: Any, tokenizer: Tokenizer, work: Work, choice: str, limit: float
) -> dict[str, Any]:
    rounds = [
        [one.ids for one in tokenizer.encode_batch(work.prompts(f"{choice}/{number}"))]
        for number in range(2)
    ]
    with managed(model, work, CHOICES[choice]) as manager:
        short = replace(work, output_tokens=min(WARM_TOKENS, work.output_tokens))
        play(manager, rounds[0][: work.concurrency], short, time.monotonic() + limit)
        began = time.perf_counter()
        tokens = play(manager, rounds[1], work, time.monotonic() + limit)
        took = time.perf_counter() - began
        config = manager.continuous_batching_config
        return {
            "streams": work.concurrency,
            "choice": choice,
            "tok/s": tokens / took,
            "seconds": took,
            "tokens": tokens,
            "graphs": str(config.use_cuda_graph),
            "async": str(config.use_async_batching),
            "attention": model.config._attn_implementation,
        }


@contextmanager
def managed(model: Any, work: Work, settings: dict[str, Any]) -> Iterator[Any]:
    """Yield a running manager, of a size that suits the work."""
    if model.device.type == "cpu":
        settings = settings | ON_CPU
    manager = model.init_continuous_batching(
        # No end of a text ends it.
        GenerationConfig(do_sample=False, max_new_tokens=work.output_tokens, eos_token_id=-1),
        ContinuousBatchingConfig(max_requests_per_batch=work.concurrency, **settings),
        WorkloadHints(work.prompt_words + 1, work.output_tokens, work.concurrency),
    )
    try:
        with torch.no_grad():
            manager.warmup()
        manager.start()
        yield manager
    finally:
        manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)
        manager.destroy()


def play(manager: Any, prompts: list[list[int]], work: Work, deadline: float) -> int:
    """Return the number of tokens for all prompts. Raises Unfinished."""
    waiting = iter(prompts)

    def send() -> None:
        if (prompt := next(waiting, None)) is not None:
            manager.add_request(prompt, max_new_tokens=work.output_tokens)

    for _ in range(work.concurrency):
        send()
    tokens = 0
    for left in range(len(prompts), 0, -1):
        while (result := manager.get_result(timeout=POLL_SECONDS)) is None:
            if not manager.is_running():
                raise Unfinished("its thread ended")
            if time.monotonic() > deadline:
                raise Unfinished(f"{left} of {len(prompts)} requests had not ended in time")
        if result.error is not None or len(result.generated_tokens) != work.output_tokens:
            raise Unfinished(f"a request failed: {result.error or len(result.generated_tokens)}")
        send()
        tokens += work.output_tokens
    return tokens

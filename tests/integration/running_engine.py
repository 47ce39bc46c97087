"""The engine with a real worker process, without HTTP: for what has to see into the core."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.integration.waiting import until
from tgi_async.engine import Engine
from tgi_async.generation import FinishReason, GenerationRequest
from tgi_async.supervisor import WORKER
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import (
    BatchConfig,
    CacheConfig,
    ModelConfig,
    RankConfig,
    SpeculationConfig,
    Start,
)

BLOCK_SIZE = 16


class Text(NamedTuple):
    """What one request got."""

    tokens: list[int]
    text: str
    finish_reason: FinishReason


@asynccontextmanager
async def running_engine(
    folder: Path,
    *,
    n_blocks: int = 640,
    max_rows: int = 16,
    max_batch_prefill_tokens: int = 0,
    lookahead: int = 1,
    model_impl: str = "fused",
    world_size: int = 1,
    quantize: str = "",
    kv_cache_dtype: str = "",
    dtype: str = "",
    round_activations: bool = False,
    max_drafts: int = 0,
    speculation: str = "",
    command: tuple[str, ...] = WORKER,
    crowded: bool = False,
) -> AsyncIterator[Engine]:
    """An engine that serves the model of a folder in float32, or quantized, weights or cache, in
    bfloat16, or in this dtype; stopped, with its workers, after.

    `crowded`: rows are admitted without room to grow into, so that some are preempted.
    """
    dtype = dtype or ("bfloat16" if quantize or kv_cache_dtype else "float32")
    engine = Engine(
        tokenizer=Tokenizer.from_folder(folder),
        start=Start(
            ModelConfig(
                str(folder),
                dtype,
                model_impl,
                quantize=quantize,
                kv_cache_dtype=kv_cache_dtype,
                round_activations=round_activations,
            ),
            BatchConfig(max_rows, max_batch_prefill_tokens),
            CacheConfig([n_blocks], BLOCK_SIZE),
            ranks=RankConfig(world_size),
            speculation=SpeculationConfig(max_drafts, speculation),
        ),
        lookahead=lookahead,
        command=command,
    )
    try:
        ready = await engine.launch(lambda loading: None)
        if crowded:
            engine.core._growth = lambda step: 0  # type: ignore[method-assign]
        longest = ready.max_total_tokens
        engine.serve(Metrics(max_input_tokens=longest, max_total_tokens=longest))
        yield engine
    finally:
        await engine.stop(5.0)


async def finish(
    engine: Engine, request: GenerationRequest, on_tokens: Callable[[], object] | None = None
) -> Text:
    """Submit a request and take all of it; `on_tokens` is called whenever some come."""
    generation = engine.submit(request)
    tokens: list[int] = []
    text = ""
    async for emitted in generation:
        tokens += [token.id for token in emitted.tokens]
        text += "".join(token.text for token in emitted.tokens)
        if on_tokens is not None:
            on_tokens()
        if emitted.finish_reason is not None:
            return Text(tokens, text, emitted.finish_reason)
    raise AssertionError("the generation ended without a reason")


async def finish_all(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    *,
    within: float,
    on_tokens: Callable[[], object] | None = None,
) -> list[Text]:
    """Submit requests at random times within so many seconds; what each got, in order.

    `on_tokens` is called whenever one gets some.
    """
    draw = random.Random(len(requests))

    async def one(request: GenerationRequest, delay: float) -> Text:
        await asyncio.sleep(delay)
        return await finish(engine, request, on_tokens)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(request, draw.uniform(0, within))) for request in requests]
    return [task.result() for task in tasks]


async def until_idle(engine: Engine) -> None:
    """Wait until the last step in flight has come back and given its blocks back."""

    async def idle() -> bool:
        return not (engine.used_blocks or engine.n_running or engine.n_waiting)

    await until(idle)

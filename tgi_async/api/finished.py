"""Wait for generations to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from tgi_async.api.engine_client import Generation
from tgi_async.generation import Drafts, FinishReason, Timings, Token, TopToken

T = TypeVar("T")


class Finished(NamedTuple):
    """The whole output of one generation."""

    tokens: list[Token]
    text: str
    finish_reason: FinishReason
    prompt_logprobs: list[float | None]
    prompt_ranks: list[int | None]
    prompt_top_tokens: list[tuple[TopToken, ...]]
    timings: Timings
    seed: int
    n_cached: int
    drafts: Drafts

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability, which `best_of` compares."""
        return math.fsum(token.logprob or 0.0 for token in self.tokens) / max(len(self.tokens), 1)


async def collect(generation: Generation) -> Finished:
    """Wait for the end of a generation; it is cancelled if this is interrupted.

    Raises:
        ServerError: it failed.
    """
    tokens: list[Token] = []
    finish_reason: FinishReason = "length"
    try:
        async for emitted in generation:
            tokens += emitted.tokens
            if emitted.finish_reason is not None:
                finish_reason = emitted.finish_reason
    finally:
        generation.cancel()
    return Finished(
        tokens,
        text_of(tokens),
        finish_reason,
        generation.prompt_logprobs,
        generation.prompt_ranks,
        generation.prompt_top_tokens,
        generation.timings,
        generation.seed,
        generation.n_cached,
        generation.drafts,
    )


async def collect_all(generations: Sequence[Generation]) -> list[Finished]:
    """Wait for all of them; the first failure cancels the others.

    Raises:
        ServerError: that of the first that failed.
    """
    return await together([collect(generation) for generation in generations])


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of all; the first failure cancels the others and is raised by itself."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    except asyncio.CancelledError as error:
        # The group's frame holds this error, whose traceback holds the frame.
        raise error.with_traceback(None) from None
    return [task.result() for task in tasks]


def text_of(tokens: Sequence[Token]) -> str:
    """Return the text that tokens add. A special one may release text that was held back."""
    return "".join([token.text for token in tokens])

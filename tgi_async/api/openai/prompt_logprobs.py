"""Log-probabilities of a prompt's tokens, in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tgi_async.api.openai.reply_schema import PromptLogprob, finite_logprob
from tgi_async.generation import TopToken
from tgi_async.text.tokenizer import Tokenizer


class PromptScores(Protocol):
    """The scores of a generation's prompt, as in `api.engine_client.Generation`."""

    @property
    def n_cached(self) -> int: ...

    @property
    def prompt_logprobs(self) -> Sequence[float | None]: ...

    @property
    def prompt_top_tokens(self) -> Sequence[Sequence[TopToken]]: ...


class RankedScores(PromptScores, Protocol):
    """The scores, with the ranks of the prompt's tokens."""

    @property
    def prompt_ranks(self) -> Sequence[int | None]: ...


def prompt_logprobs_of(
    tokenizer: Tokenizer, prompt: Sequence[int], scores: RankedScores, n: int
) -> list[dict[int, PromptLogprob] | None]:
    """Return the token at each position and the `n` likeliest ones, by their ids.

    The first is None: nothing comes before it.
    """
    tops = scores.prompt_top_tokens or [()] * len(prompt)
    found: list[dict[int, PromptLogprob] | None] = []
    for id, logprob, rank, top in zip(
        prompt, scores.prompt_logprobs, scores.prompt_ranks, tops, strict=True
    ):
        if logprob is None:
            found.append(None)
            continue
        at = {id: PromptLogprob(finite_logprob(logprob), rank, tokenizer.token_text(id))}
        for place, one in enumerate(top[:n], 1):
            at.setdefault(one.id, PromptLogprob(finite_logprob(one.logprob), place, one.text))
        found.append(at)
    return found

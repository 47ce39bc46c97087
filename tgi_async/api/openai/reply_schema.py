"""Parts of replies that `/v1/chat/completions` and `/v1/completions` share."""

from __future__ import annotations

import time
import uuid

from msgspec import UNSET, Struct, UnsetType

from tgi_async.generation import Drafts

LEAST_LOGPROB = -9999.0
"""OpenAI's value for a very unlikely token. JSON has none for an impossible one."""


class PromptTokensDetails(Struct, frozen=True):
    """`cached_tokens` were found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    """`reasoning_tokens` are those of the model's reasoning.

    Of the drafts of a server that speculates, `accepted_prediction_tokens` are among the
    completion's tokens, and `rejected_prediction_tokens` are not, nor are they counted there.
    """

    reasoning_tokens: int | UnsetType = UNSET
    accepted_prediction_tokens: int | UnsetType = UNSET
    rejected_prediction_tokens: int | UnsetType = UNSET


class Usage(Struct, frozen=True):
    """TGI has no details. Each prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET

    @classmethod
    def of(
        cls,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        cached_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        drafts: Drafts | None = None,
    ) -> Usage:
        """Return the usage with the sum, and the details that are not None."""
        details: CompletionTokensDetails | UnsetType = UNSET
        if reasoning_tokens is not None or drafts is not None:
            details = CompletionTokensDetails(
                UNSET if reasoning_tokens is None else reasoning_tokens,
                UNSET if drafts is None else drafts.accepted,
                UNSET if drafts is None else drafts.rejected,
            )
        return cls(
            prompt_tokens,
            completion_tokens,
            prompt_tokens + completion_tokens,
            UNSET if cached_tokens is None else PromptTokensDetails(cached_tokens),
            details,
        )


class PromptLogprob(Struct, frozen=True):
    """A token at a prompt position; the likeliest one's rank is 1."""

    logprob: float
    rank: int | None
    decoded_token: str


def finite_logprob(logprob: float) -> float:
    """Return a log-probability as these routes show it: a finite number."""
    return max(LEAST_LOGPROB, logprob)  # of NaN too


def unique_id(kind: str, name: str = "") -> str:
    """Return an id that no other reply has, e.g. `chatcmpl-…`, or one with this name."""
    return f"{kind}-{name or uuid.uuid4().hex}"


def now() -> int:
    """Return the seconds since 1970."""
    return int(time.time())

"""Bodies of `/generate`, `/generate_stream`, `/` and `/tokenize`.

A field that may be UNSET is left out of the reply; one that may be None is there as null.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from tgi_async.api.parameters import GenerateParameters
from tgi_async.generation import FinishReason


class GenerateRequest(Struct, frozen=True):
    """`parameters` absent and `{}` differ: only the first samples by default (TGI's rule)."""

    inputs: str
    parameters: GenerateParameters | None = None

    @property
    def given(self) -> GenerateParameters:
        """The parameters, or the defaults where there are none."""
        return self.parameters or GenerateParameters(do_sample=True)


class CompatGenerateRequest(GenerateRequest, frozen=True):
    stream: bool | None = False


class TokenBody(Struct, frozen=True):
    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(Struct, frozen=True):
    id: int
    text: str
    logprob: float | None


class BestOfSequence(Struct, frozen=True, kw_only=True):
    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[TokenBody]
    top_tokens: list[list[TokenBody]] | UnsetType = UNSET


class Details(Struct, frozen=True, kw_only=True):
    """`generated_tokens` includes the end-of-sequence token; `seed` is null when greedy."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[TokenBody]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[TokenBody]] | UnsetType = UNSET


class GenerateResponse(Struct, frozen=True):
    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(Struct, frozen=True):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(Struct, frozen=True, kw_only=True):
    """One event; `index` counts tokens from 1. The last one has the whole text."""

    index: int
    token: TokenBody
    top_tokens: list[TokenBody] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class SimpleToken(Struct, frozen=True):
    """`start` and `stop` are places in `inputs`, in characters."""

    id: int
    text: str
    start: int
    stop: int

"""`/v1/completions`."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from tgi_async.api.parameters import U32
from tgi_async.api.schemas.openai import OpenAIRequest, Usage


class CompletionRequest(OpenAIRequest, frozen=True, kw_only=True):
    prompt: str | list[str]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: U32 | bool | None = None
    best_of: U32 | None = None


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """`finish_reason` is null in a stream until the prompt's last chunk."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: str | None


class Completion(Struct, frozen=True, kw_only=True):
    """A whole reply, or a chunk of a stream."""

    object: Literal["text_completion"] = "text_completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET

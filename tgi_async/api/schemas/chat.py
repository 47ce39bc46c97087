"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from tgi_async.api.parameters import U32
from tgi_async.api.schemas.openai import OpenAIRequest, Usage


class TextChunk(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ImageChunk(Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: Any


class MessageBody(Struct, frozen=True, kw_only=True):
    role: str
    content: str | list[TextChunk | ImageChunk] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Any] | None = None


class ChatRequest(OpenAIRequest, frozen=True, kw_only=True):
    """`max_completion_tokens` is OpenAI's newer name of `max_tokens`."""

    messages: list[MessageBody]
    max_completion_tokens: U32 | None = None
    logprobs: bool | None = None
    top_logprobs: U32 | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: Any = None


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float | None
    top_logprobs: list[TopLogprob]


class Logprobs(Struct, frozen=True):
    content: list[TokenLogprob]


class AssistantMessage(Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: int = 0
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: str


class ChatDelta(Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: str | None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | None = None

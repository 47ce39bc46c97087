"""vLLM's form of `/tokenize`, and `/detokenize`. TGI's form is in `generate`."""

from __future__ import annotations

from msgspec import Struct

from tgi_async.api.chat.schema import ChatRequest
from tgi_async.wire.messages import Id


class PromptTokenizeRequest(Struct, frozen=True, kw_only=True):
    """`model` may be any text, as in the OpenAI routes."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = True
    return_token_strs: bool | None = False


class ChatTokenizeRequest(ChatRequest, frozen=True, kw_only=True):
    """A chat."""

    return_token_strs: bool | None = False
    chat_template: str | None = None


class TokenizeResponse(Struct, frozen=True):
    """`token_strs` are the entries of the vocabulary, if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    tokens: list[Id]
    model: str | None = None


class DetokenizeResponse(Struct, frozen=True):
    """The text of the tokens, special ones by their names."""

    prompt: str

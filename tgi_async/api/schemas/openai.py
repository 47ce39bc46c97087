"""What `/v1/chat/completions` and `/v1/completions` share."""

from __future__ import annotations

import time
import uuid

from msgspec import Struct

from tgi_async.api.exchange import DONE, event
from tgi_async.api.parameters import I32, U32, GenerateParameters, Unsigned, refuse_unbuilt
from tgi_async.errors import ServerError, ValidationError
from tgi_async.generation import FinishReason


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = False


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        """With their sum."""
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


class OpenAIRequest(Struct, frozen=True, kw_only=True):
    """Fields of both routes.

    `model` may be any text: there is one model, and clients written for TGI send arbitrary names.
    `repetition_penalty`, `top_k`, `typical_p`, `watermark` and `ignore_eos` are not OpenAI's.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: I32 | None = None
    typical_p: float | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | list[float] | None = None
    max_tokens: U32 | None = None
    stop: list[str] | str | None = None
    seed: Unsigned | None = None
    n: U32 | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    watermark: bool | None = False
    ignore_eos: bool | None = False

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_built(self) -> None:
        """Refuse what this version does not act upon.

        Raises:
            ValidationError: naming the field.
        """
        if self.n not in (None, 1):
            raise ValidationError(f"`n` must be 1: one choice for each prompt. Given: {self.n}")
        refuse_unbuilt(
            presence_penalty=self.presence_penalty, logit_bias=self.logit_bias, min_p=self.min_p
        )

    def parameters(
        self, max_new_tokens: U32 | None, top_n_tokens: U32 | None = None
    ) -> GenerateParameters:
        """The same wishes as generation parameters.

        Temperature 0 is greedy, whatever else is set; otherwise these routes sample. Values that
        OpenAI's clients send to turn a parameter off are taken as such: `top_p` and `typical_p` 1,
        `top_k` 0 and -1.
        """
        greedy = self.temperature == 0
        return GenerateParameters(
            do_sample=not greedy,
            temperature=None if greedy else self.temperature,
            top_p=None if greedy or self.top_p == 1 else self.top_p,
            top_k=None if greedy or self.top_k in (0, -1) else self.top_k,
            typical_p=None if greedy or self.typical_p == 1 else self.typical_p,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=max_new_tokens,
            stop=self.stop,
            seed=self.seed,
            watermark=bool(self.watermark),
            ignore_eos=bool(self.ignore_eos),
            top_n_tokens=top_n_tokens,
        )


class StreamFailure(Struct, frozen=True):
    message: str
    http_status_code: int


class StreamError(Struct, frozen=True):
    """An error within a stream. Its status is the real one, where TGI always says 422."""

    error: StreamFailure


def error_event(error: ServerError) -> bytes:
    """The last events of a stream that fails."""
    return event(StreamError(StreamFailure(str(error), error.status))) + DONE


def finish_reason_of(reason: FinishReason) -> str:
    """OpenAI's word for the end: what ended by a token or a stop sequence is `stop`."""
    return "length" if reason == "length" else "stop"


def unique_id(kind: str) -> str:
    """An id that no other reply has, e.g. `chatcmpl-…`."""
    return f"{kind}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())

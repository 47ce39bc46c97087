"""What `/v1/chat/completions` and `/v1/completions` share."""

from __future__ import annotations

import time
import uuid

from msgspec import UNSET, Struct, UnsetType, structs

from tgi_async.api.limits import Limits, set_by
from tgi_async.api.parameters import (
    I32,
    U32,
    GenerateParameters,
    check_additive_penalty,
    check_warpers,
)
from tgi_async.api.schemas.grammar import Grammar
from tgi_async.errors import ValidationError
from tgi_async.generation import GenerationRequest
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.wire.messages import MAX_BIASES

MAX_BIAS = 100.0
LEAST_LOGPROB = -9999.0
"""OpenAI's word for a token that hardly comes. JSON has none for one that can not come at all."""


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = False


class PromptTokensDetails(Struct, frozen=True):
    """`cached_tokens` are those that the prefix cache had."""

    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    """`reasoning_tokens` are those of thoughts."""

    reasoning_tokens: int


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
    ) -> Usage:
        """With their sum, and the details that are not None."""
        return cls(
            prompt_tokens,
            completion_tokens,
            prompt_tokens + completion_tokens,
            UNSET if cached_tokens is None else PromptTokensDetails(cached_tokens),
            UNSET if reasoning_tokens is None else CompletionTokensDetails(reasoning_tokens),
        )


class OpenAIRequest(Struct, frozen=True, kw_only=True):
    """Fields of both routes.

    `model` may be any text: there is one model, and clients written for TGI send arbitrary names.
    `repetition_penalty`, `top_k`, `typical_p`, `min_p`, `watermark` and `ignore_eos` are not
    OpenAI's.
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
    seed: int | None = None
    n: U32 | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    watermark: bool | None = False
    ignore_eos: bool | None = False

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def n_choices(self, limits: Limits) -> int:
        """How many choices each prompt gets.

        Raises:
            ValidationError: more than `max_best_of`, or none.
        """
        n = 1 if self.n is None else self.n
        if not 0 < n <= limits.max_best_of:
            raise ValidationError(
                f"`n` must be > 0 and <= {limits.max_best_of}. Given: {n}"
                + set_by(limits, "--max-best-of")
            )
        return n

    def parameters(
        self,
        limits: Limits,
        max_new_tokens: U32 | None,
        top_n_tokens: U32 | None = None,
        grammar: Grammar | None = None,
    ) -> GenerateParameters:
        """The same wishes as generation parameters, as far as these have them.

        Temperature 0 is greedy, whatever else is set; otherwise these routes sample. Values that
        OpenAI's clients send to turn a parameter off are taken as such: `top_p` and `typical_p` 1,
        `top_k` 0 and -1. TGI refuses them. What the request leaves open is as the model's makers
        recommend it; TGI samples from the plain distribution then.
        """
        strict = limits.strict_tgi
        advice = SamplingDefaults() if strict else limits.sampling_defaults
        temperature = advice.temperature if self.temperature is None else self.temperature
        greedy = temperature == 0
        top_p = advice.top_p if self.top_p is None else self.top_p
        top_k = advice.top_k if self.top_k is None else self.top_k
        return GenerateParameters(
            do_sample=not greedy,
            temperature=None if greedy else temperature,
            top_p=None if greedy or (top_p == 1 and not strict) else top_p,
            top_k=None if greedy or top_k in (0, -1) else top_k,
            typical_p=None if greedy or self.typical_p == 1 else self.typical_p,
            min_p=None if greedy else self.min_p,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=max_new_tokens,
            stop=self.stop,
            seed=self.seed,
            watermark=bool(self.watermark),
            ignore_eos=bool(self.ignore_eos),
            top_n_tokens=top_n_tokens,
            grammar=grammar,
        )

    def check_own(self) -> None:
        """The rules on what generation parameters do not have.

        Raises:
            ValidationError: for the first rule that is broken.
        """
        if self.temperature == 0:
            # Greedy leaves the parameters of sampling out, but wrong ones are still wrong.
            off = self.top_p == 1, self.top_k in (0, -1), self.typical_p == 1
            check_warpers(
                GenerateParameters(
                    top_p=None if off[0] else self.top_p,
                    top_k=None if off[1] else self.top_k,
                    typical_p=None if off[2] else self.typical_p,
                    min_p=self.min_p,
                )
            )
        check_additive_penalty("presence_penalty", self.presence_penalty)
        self._biases()

    def completed(self, request: GenerationRequest, *, logprobs: bool) -> GenerationRequest:
        """`request`, made of the parameters, with what these do not have: OpenAI's penalties and
        biases, and log-probabilities as the model gives them.
        """
        biases = self._biases()
        return structs.replace(
            request,
            sampling=structs.replace(
                request.sampling,
                frequency_penalty=0.0,
                output_frequency_penalty=self.frequency_penalty or 0.0,
                output_presence_penalty=self.presence_penalty or 0.0,
                biased_ids=list(biases),
                biases=list(biases.values()),
                top_n_tokens=request.sampling.top_n_tokens if logprobs else 0,
                model_logprobs=logprobs,
            ),
        )

    def _biases(self) -> dict[int, float]:
        """By token id. Raises ValidationError."""
        if not self.logit_bias:
            return {}
        if isinstance(self.logit_bias, list):
            raise ValidationError("`logit_bias` must map token ids to numbers. Given: a list")
        if len(self.logit_bias) > MAX_BIASES:
            raise ValidationError(
                f"`logit_bias` supports up to {MAX_BIASES} tokens. Given: {len(self.logit_bias)}"
            )
        biases: dict[int, float] = {}
        for key, bias in self.logit_bias.items():
            # Ten digits hold every 31-bit id; the key is not shown whole, for it may be any text.
            if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < 2**31):
                raise ValidationError(
                    f"`logit_bias` maps token ids, which are numbers from 0. Given: {key[:20]!r}"
                )
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise ValidationError(
                    f"`logit_bias` values must be >= -{MAX_BIAS:g} and <= {MAX_BIAS:g}. "
                    f"Given: {bias} for the token {key}"
                )
            biases[int(key)] = bias
        return biases


def told_logprob(logprob: float) -> float:
    """A log-probability as these routes tell it: a finite number."""
    return max(LEAST_LOGPROB, logprob)  # of NaN too


def unique_id(kind: str) -> str:
    """An id that no other reply has, e.g. `chatcmpl-…`."""
    return f"{kind}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())

"""Fields that `/v1/chat/completions` and `/v1/completions` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal, Self

from msgspec import Meta, Struct, structs

from tgi_async.api.body import BodyRefused
from tgi_async.api.grammar.schema import Grammar, ResponseFormat, StructuredOutputs
from tgi_async.api.limits import Limits, set_by
from tgi_async.api.parameters import (
    ADMITTED_NEW_TOKENS,
    I32,
    U32,
    GenerateParameters,
    check_additive_penalty,
    check_warpers,
)
from tgi_async.errors import ValidationError
from tgi_async.generation import GenerationRequest
from tgi_async.scheduler.blocks import Salt
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.wire.messages import MAX_BIASES, Id

MAX_BIAS = 100.0
MAX_STOP_IDS = 256

NewTokens = Annotated[int, Meta(ge=-1, lt=2**32)]
"""-1 means no limit, as in llama.cpp's and LM Studio's clients."""
NEW_TOKENS = ("max_completion_tokens", "max_tokens", "max_new_tokens", "n_predict")
"""Names of the most new tokens; the first that is given counts."""


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = False


class OpenAIRequest(Struct, frozen=True, kw_only=True):
    """Fields of both routes, under the names of OpenAI, of vLLM and of others.

    `model` may be any text: there is one model, and clients written for TGI send arbitrary names.
    Grammars are read by `api.openai.form`. docs/fields.md says what each field does.
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
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    max_new_tokens: NewTokens | None = None
    n_predict: I32 | None = None
    min_tokens: U32 | None = None
    cache_salt: str | None = None
    stop: list[str] | str | None = None
    seed: int | None = None
    n: U32 | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    watermark: bool | None = False
    ignore_eos: bool | None = False
    stop_token_ids: Annotated[list[Id], Meta(max_length=MAX_STOP_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    bad_words: list[str] | str | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    prompt_logprobs: U32 | bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    structural_tag: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    json_schema: Any = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | Grammar | None = None

    @property
    def most_new_tokens(self) -> U32 | None:
        """`max_tokens` under any of its names, the newest first."""
        given: int | None = getattr(self, self.most_new_tokens_name)
        return None if given is None or given < 0 else given

    @property
    def most_new_tokens_name(self) -> str:
        """The name of it that the client sent."""
        given = (name for name in NEW_TOKENS if getattr(self, name) is not None)
        return next(given, "max_tokens")

    @property
    def includes_stop(self) -> bool:
        """Whether the text includes what ends it; the second name is SGLang's."""
        return bool(self.include_stop_str_in_output or self.no_stop_trim)

    @property
    def n_prompt_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report at each prompt position; None: no
        log-probabilities."""
        given = self.prompt_logprobs
        return None if given is None or given is False else int(given)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @classmethod
    def read_by_tgi(cls) -> frozenset[str]:
        """Return the fields that TGI does not ignore."""
        raise NotImplementedError

    def as_tgi_reads_it(self) -> Self:
        """Return the body without the fields that TGI ignores."""
        return structs.replace(self, **dict.fromkeys(self.ignored_by_tgi()))

    def ignored_by_tgi(self) -> list[str]:
        """Return the fields that ask for something and that TGI ignores."""
        names = set(self.__struct_fields__) - self.read_by_tgi()
        given = {name: getattr(self, name) for name in sorted(names)}
        idle = {"n": 1, "best_of": 1}
        return [
            name
            for name, value in given.items()
            if value is not None and value is not False and value != idle.get(name)
        ]

    def n_choices(self, limits: Limits) -> int:
        """Return how many choices each prompt gets.

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
        """Return the fields as generation parameters, as far as there are such.

        Temperature 0 is greedy, whatever else is set, and so is `top_p` 0; otherwise these routes
        sample. Values that OpenAI's clients send to turn a parameter off are taken as such: `top_p`
        and `typical_p` 1, `top_k` 0 and -1. TGI refuses them. Unset parameters are the model's
        recommended ones; TGI samples from the plain distribution then.
        """
        dialect = limits.dialect
        if not dialect.reads_neutral_values and self.max_tokens == -1:
            raise BodyRefused.of_wrong_type("Expected `int` >= 0", "max_tokens")
        advice = limits.sampling_defaults if dialect.recommends_sampling else SamplingDefaults()
        temperature = self._temperature(limits)
        greedy = self._greedy(limits)
        top_p = advice.top_p if self.top_p is None else self.top_p
        top_k = advice.top_k if self.top_k is None else self.top_k
        return GenerateParameters(
            do_sample=not greedy,
            temperature=None if greedy else temperature,
            top_p=None if greedy or (top_p == 1 and dialect.reads_neutral_values) else top_p,
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

    def _temperature(self, limits: Limits) -> float | None:
        """Return the temperature; None: 1.

        A recommendation to be greedy does not apply to a request that asks for sampling, by a
        parameter that only sampling has or by several choices.
        """
        if self.temperature is not None or not limits.dialect.recommends_sampling:
            return self.temperature
        advised = limits.sampling_defaults.temperature
        asks = (
            self.top_p not in (None, 0, 1),
            self.top_k not in (None, 0, -1),
            self.typical_p not in (None, 1),
            bool(self.min_p),
            (self.n or 1) > 1,
            (getattr(self, "best_of", None) or 1) > 1,
        )
        return None if advised == 0 and any(asks) else advised

    def _greedy(self, limits: Limits) -> bool:
        """Return whether sampling is greedy."""
        none_but_the_first = self.top_p == 0 and limits.dialect.reads_neutral_values
        return none_but_the_first or self._temperature(limits) == 0

    def check_own(self, limits: Limits) -> None:
        """Check the rules on fields that generation parameters do not have.

        Raises:
            ValidationError: for the first rule that is broken.
        """
        if self._greedy(limits):
            # Greedy sampling ignores the sampling parameters, but invalid ones are still refused.
            no_top_p = (0, 1) if limits.dialect.reads_neutral_values else (1,)
            off = self.top_p in no_top_p, self.top_k in (0, -1), self.typical_p == 1
            check_warpers(
                GenerateParameters(
                    top_p=None if off[0] else self.top_p,
                    top_k=None if off[1] else self.top_k,
                    typical_p=None if off[2] else self.typical_p,
                    min_p=self.min_p,
                    temperature=self.temperature or None,
                )
            )
        check_additive_penalty("presence_penalty", self.presence_penalty)
        self._biases()
        most = self.most_new_tokens
        if self.min_tokens and most is not None and self.min_tokens > most:
            raise ValidationError(
                f"`min_tokens` must be <= `max_tokens`, which is {most}. Given: {self.min_tokens}"
            )
        if self.min_tokens and self.min_tokens >= limits.max_total_tokens:
            raise ValidationError(
                f"`min_tokens` must be < {limits.max_total_tokens}, which is as long as a prompt "
                f"and its text can be. Given: {self.min_tokens}"
            )
        n_scores = self.n_prompt_logprobs
        if n_scores is not None and n_scores > limits.max_top_n_tokens:
            raise ValidationError(
                f"`prompt_logprobs` must be >= 0 and <= {limits.max_top_n_tokens}. "
                f"Given: {n_scores}"
            )
        self._check_truncation(limits)

    def _check_truncation(self, limits: Limits) -> None:
        n, side = self.truncate_prompt_tokens, self.truncation_side
        if n == 0 or (n is not None and n > limits.max_input_tokens):
            raise ValidationError(
                f"`truncate_prompt_tokens` must be -1, or from 1 to {limits.max_input_tokens}. "
                f"Given: {n}"
            )
        if side is not None and n is None:
            raise ValidationError(
                "`truncation_side` needs `truncate_prompt_tokens`, which says how many are kept"
            )

    def truncated(self, prompt: range, limits: Limits) -> range:
        """Return the places of a prompt to keep: the last ones, unless `truncation_side` is right.

        With -1 it is as many as the server takes beside the tokens that are to be generated.
        """
        n = self.truncate_prompt_tokens
        if n is None:
            return prompt
        if n < 0:
            room = limits.max_total_tokens - min(self.most_new_tokens or 1, ADMITTED_NEW_TOKENS)
            n = max(1, min(limits.max_input_tokens, room))
        return prompt[:n] if self.truncation_side == "right" else prompt[-n:]

    def completed(
        self,
        request: GenerationRequest,
        *,
        logprobs: bool,
        banned: Sequence[list[int]] = (),
        special_texts: Mapping[int, str] | None = None,
    ) -> GenerationRequest:
        """Complete `request`, made of the parameters, with what these lack: OpenAI's penalties and
        biases, the model's own log-probabilities, and vLLM's fields.

        `banned` are the tokens of `bad_words`, `special_texts` the names of all special tokens.
        """
        biases = self._biases()
        n_scores = self.n_prompt_logprobs
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
                min_tokens=self.min_tokens or 0,
                banned=list(banned),
            ),
            stop_token_ids=(*request.stop_token_ids, *(self.stop_token_ids or ())),
            prompt_logprobs=n_scores is not None,
            prompt_top_n_tokens=n_scores or 0,
            salts=self._salts(request.salts),
            special_texts=special_texts or {} if self.skip_special_tokens is False else {},
        )

    def _salts(self, salts: tuple[Salt, ...]) -> tuple[Salt, ...]:
        """Return these after that of the body, if it has one."""
        if not self.cache_salt:
            return salts
        digest = blake2b(self.cache_salt.encode(errors="surrogatepass"), digest_size=16).digest()
        return (Salt(0, 1, digest), *salts)

    def _biases(self) -> dict[int, float]:
        """Return the biases by token id. Raise ValidationError."""
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
            # Ten digits hold every 31-bit id; the key is not shown in full, as it may be any text.
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

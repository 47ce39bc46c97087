"""Generation parameters: the schema, its validation in TGI's order and words, and the result.

The OpenAI routes build the same struct from their own fields, so every rule is here once.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from tgi_async.api.field_names import OF_TGI, FieldNames
from tgi_async.api.grammar.schema import Grammar
from tgi_async.api.limits import Limits, set_by
from tgi_async.errors import ContextLengthExceeded, ValidationError
from tgi_async.wire.messages import Sampling

I32 = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]

ADMITTED_NEW_TOKENS = 1024
"""TGI admits a request that has room for this many new tokens, even if it asks for more, and ends
it with `length` where the room ends."""

MIN_TEMPERATURE = 1e-6
"""Below this, dividing logits by the temperature overflows and no longer changes the result."""

MAX_TEMPERATURE = 1000.0
PENALTY_RANGE = (0.01, 100.0)


class GenerateParameters(Struct, frozen=True, kw_only=True):
    """`parameters` of `/generate`. `stop` may also be one string or null, as OpenAI clients do.

    `min_p` and `ignore_eos` are not TGI's.
    """

    best_of: U63 | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: I32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    min_p: float | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = None
    return_full_text: bool | None = None
    stop: list[str] | str | None = None
    truncate: U63 | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: U32 | None = None
    ignore_eos: bool = False
    grammar: Grammar | None = None
    adapter_id: str | None = None

    @property
    def sampled(self) -> bool:
        """Whether the request asks for sampling, also by a parameter that only sampling has."""
        warpers = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return self.do_sample or bool(self.min_p) or any(value is not None for value in warpers)

    @property
    def stop_sequences(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def refuse_unbuilt(**fields: object) -> None:
    """Refuse fields that are not supported, unless their value asks for nothing.

    Raises:
        ValidationError: naming the first one.
    """
    for name, value in fields.items():
        if value:
            raise ValidationError(
                f"`{name}` is not supported by this version of the server. "
                "Remove it from the request"
            )


def check_best_of(parameters: GenerateParameters, limits: Limits) -> None:
    """Check the rules on `best_of` that do not depend on free rows; `best_of` 0 counts as 1."""
    best_of = parameters.best_of or 1
    if best_of == 1:
        return
    if limits.max_best_of == 1:
        raise ValidationError(
            "`best_of` != 1 is not allowed for this endpoint" + set_by(limits, "--max-best-of")
        )
    if best_of > limits.max_best_of:
        raise ValidationError(
            f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}"
            + set_by(limits, "--max-best-of")
        )


def check_streamed(parameters: GenerateParameters) -> None:
    """Check for parameters that a stream cannot have."""
    if parameters.best_of not in (None, 1):
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
    if parameters.decoder_input_details:
        raise ValidationError(
            "`decoder_input_details` == true is not supported when streaming tokens"
        )


def check(parameters: GenerateParameters, limits: Limits, names: FieldNames = OF_TGI) -> None:
    """Check every rule that needs no tokens, in TGI's order.

    Raises:
        ValidationError: for the first rule that is broken.
    """
    p = parameters
    refuse_unbuilt(adapter_id=p.adapter_id)
    if (p.best_of or 1) > 1 and not p.sampled:
        raise ValidationError("you must use sampling when `best_of` is > 1")
    check_warpers(p)
    if p.max_new_tokens == 0:
        raise ValidationError(f"`{names.max_new_tokens}` must be strictly positive")
    stop = p.stop_sequences
    if len(stop) > limits.max_stop_sequences:
        raise ValidationError(
            f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(stop)}"
            + set_by(limits, "--max-stop-sequences")
        )
    if "" in stop:
        raise ValidationError("`stop` sequences cannot be empty")
    if p.seed is not None:
        if (p.best_of or 1) > 1:
            raise ValidationError("`seed` must not be set when `best_of` > 1")
        least_seed = limits.dialect.least_seed
        if not least_seed <= p.seed < 2**64:
            # Not shown: it may have thousands of digits.
            least = "-2**63" if least_seed == -(2**63) else str(least_seed)
            raise ValidationError(f"`seed` must be >= {least} and < 2**64")
    if p.top_n_tokens is not None and p.top_n_tokens > limits.max_top_n_tokens:
        raise ValidationError(
            f"`{names.top_n_tokens}` must be >= 0 and <= {limits.max_top_n_tokens}. "
            f"Given: {p.top_n_tokens}" + set_by(limits, "--max-top-n-tokens")
        )


def check_warpers(p: GenerateParameters) -> None:
    if p.temperature is not None:
        if p.temperature <= 0:
            raise ValidationError("`temperature` must be strictly positive")
        if p.temperature > MAX_TEMPERATURE:
            raise ValidationError(
                f"`temperature` must be <= {MAX_TEMPERATURE}. Given: {p.temperature}"
            )
    if p.repetition_penalty is not None:
        if p.repetition_penalty <= 0:
            raise ValidationError("`repetition_penalty` must be strictly positive")
        least, most = PENALTY_RANGE
        if not least <= p.repetition_penalty <= most:
            raise ValidationError(
                f"`repetition_penalty` must be >= {least} and <= {most}. "
                f"Given: {p.repetition_penalty}"
            )
    check_additive_penalty("frequency_penalty", p.frequency_penalty)
    if p.top_p is not None and not 0.0 < p.top_p < 1.0:
        raise ValidationError("`top_p` must be > 0.0 and < 1.0")
    if p.typical_p is not None and not 0.0 < p.typical_p < 1.0:
        raise ValidationError("`typical_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    if p.min_p is not None and not 0.0 <= p.min_p <= 1.0:
        raise ValidationError(f"`min_p` must be >= 0.0 and <= 1.0. Given: {p.min_p}")


def check_additive_penalty(name: str, value: float | None) -> None:
    """Check the range of a penalty that is subtracted from a logit."""
    if value is not None and not -2.0 <= value <= 2.0:
        raise ValidationError(f"`{name}` must be >= -2.0 and <= 2.0")


def check_text(text: str, truncate: int | None, limits: Limits, names: FieldNames = OF_TGI) -> None:
    """Check the rules on the prompt's text, before it is tokenized."""
    if not text:
        raise ValidationError(f"`{names.prompt}` cannot be empty")
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. "
            f"Given: {truncate}" + set_by(limits, "--max-input-tokens")
        )


def fit(
    n_prompt: int,
    max_new_tokens: int | None,
    limits: Limits,
    names: FieldNames = OF_TGI,
    images: Sequence[int] = (),
) -> int:
    """Return how many new tokens a prompt of `n_prompt` tokens gets.

    `images` are the tokens that each of its images takes.

    Raises:
        ValidationError: it does not fit.
    """
    room = max(0, limits.max_total_tokens - n_prompt)
    wanted = room if max_new_tokens is None else max_new_tokens
    admitted = min(wanted, ADMITTED_NEW_TOKENS)
    if n_prompt <= limits.max_input_tokens and admitted <= room:
        return min(wanted, room)
    if names != OF_TGI:
        raise _too_long(n_prompt, wanted, limits, names, _share_of(images))
    if n_prompt + admitted > limits.max_total_tokens:
        given = wanted if limits.dialect.explains_errors else admitted
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {n_prompt} `inputs` tokens and {given} `max_new_tokens`"
            + _share_of(images)
            + set_by(limits, "--max-total-tokens")
        )
    raise ValidationError(
        f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {n_prompt}"
        + _share_of(images)
        + set_by(limits, "--max-input-tokens")
    )


def _share_of(images: Sequence[int]) -> str:
    """Return the end of a message about a prompt's length: what its images take."""
    if not images:
        return ""
    if len(images) == 1:
        return f". Its image takes {images[0]} tokens: send a smaller one"
    each = ", ".join(map(str, images[:8])) + (", ..." if len(images) > 8 else "")
    return (
        f". Its {len(images)} images take {sum(images)} tokens ({each}): send fewer or smaller ones"
    )


def _too_long(
    n_prompt: int, n_wanted: int, limits: Limits, names: FieldNames, images: str
) -> ContextLengthExceeded:
    """Return the error in OpenAI's words, which clients recognize and take the numbers from.

    LangChain looks for "prompt is too long", which is Anthropic's.
    """
    said = f"This model's maximum context length is {limits.max_total_tokens} tokens. However, "
    if n_prompt > limits.max_input_tokens:
        said += (
            f"your {names.prompt} resulted in {n_prompt} tokens. Please reduce the length of the "
            f"{names.prompt}: the prompt is too long, {limits.max_input_tokens} tokens are allowed"
        )
        flags = ["--max-input-tokens", "--max-total-tokens"]
    else:
        said += (
            f"you requested {n_prompt + n_wanted} tokens ({n_prompt} in the {names.prompt}, "
            f"{n_wanted} in the completion). Please reduce the length of the {names.prompt} or "
            f"completion (`{names.max_new_tokens}`): the prompt is too long for so many new tokens"
        )
        flags = ["--max-total-tokens"]
    return ContextLengthExceeded(said + images + set_by(limits, *flags), param=names.prompt)


def random_seed() -> int:
    """Return an unsigned 64-bit seed, for a generation that was given none."""
    return secrets.randbits(64)


def sampling_of(
    parameters: GenerateParameters, *, logprobs: bool, seed: int | None = None
) -> Sampling:
    """Return a row's sampling parameters. A request without a seed gets `seed`, or a random one.

    A negative seed is the unsigned one with the same bits. Like TGI's, this samples as soon as a
    value is set that changes the distribution, and is greedy for `do_sample` false with a
    temperature of exactly 1.
    """
    p = parameters
    if p.seed is not None:
        seed = p.seed % 2**64
    temperature = 1.0 if p.temperature is None else max(p.temperature, MIN_TEMPERATURE)
    warped = bool(p.min_p) or (p.top_k, p.top_p, p.typical_p) != (None, None, None)
    return Sampling(
        do_sample=p.do_sample or temperature != 1.0 or warped,
        temperature=temperature,
        top_k=p.top_k or 0,
        top_p=1.0 if p.top_p is None else p.top_p,
        typical_p=1.0 if p.typical_p is None else p.typical_p,
        min_p=p.min_p or 0.0,
        repetition_penalty=1.0 if p.repetition_penalty is None else p.repetition_penalty,
        frequency_penalty=p.frequency_penalty or 0.0,
        watermark=p.watermark,
        seed=random_seed() if seed is None else seed,
        logprobs=logprobs,
        top_n_tokens=p.top_n_tokens or 0,
    )

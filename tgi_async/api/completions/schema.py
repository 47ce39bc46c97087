"""Bodies of `/v1/completions`."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from tgi_async.api.field_names import OF_TGI, FieldNames
from tgi_async.api.limits import Limits, set_by
from tgi_async.api.openai.reply_schema import PromptLogprob, Usage
from tgi_async.api.openai.schema import OpenAIRequest
from tgi_async.api.parameters import U32
from tgi_async.errors import ValidationError
from tgi_async.wire.messages import Id

READ_BY_TGI = frozenset(
    {
        "prompt",
        "model",
        "frequency_penalty",
        "repetition_penalty",
        "max_tokens",
        "stop",
        "stream",
        "seed",
        "suffix",
        "temperature",
        "top_p",
    }
)


class CompletionRequest(OpenAIRequest, frozen=True, kw_only=True):
    """`prompt` is a text or the token ids of one, or a list of either.

    `logprobs` is how many of the likeliest tokens to report besides the sampled one.
    """

    prompt: str | list[str | Id | list[Id]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: U32 | bool | None = None
    best_of: U32 | None = None

    @property
    def n_logprobs(self) -> int | None:
        """How many log-probabilities to show, or None where none are wanted."""
        return None if self.logprobs is None or self.logprobs is False else int(self.logprobs)

    @property
    def scores_only(self) -> bool:
        """Whether only the prompt's log-probabilities are wanted."""
        return bool(self.echo) and self.most_new_tokens == 0

    def n_generated(self, limits: Limits) -> int:
        """Return how many choices of each prompt are generated; the best `n` are shown.

        Raises:
            ValidationError: too many, or too few, or more than `n` in a stream.
        """
        n = self.n_choices(limits)
        best_of = self.best_of or n
        if not n <= best_of <= limits.max_best_of:
            raise ValidationError(
                f"`best_of` must be >= `n`, which is {n}, and <= {limits.max_best_of}. "
                f"Given: {best_of}" + set_by(limits, "--max-best-of")
            )
        if self.stream and best_of != n:
            raise ValidationError("`best_of` != `n` is not supported when streaming tokens")
        return best_of

    def names(self, limits: Limits, form: str | None) -> FieldNames:
        """Return the client's names of the fields, `form` being that of the grammar; in TGI's
        messages, TGI's names."""
        if not limits.dialect.names_fields_as_sent:
            return OF_TGI
        return FieldNames(
            "prompt", self.most_new_tokens_name, "logprobs", form or "response_format"
        )

    @classmethod
    def read_by_tgi(cls) -> frozenset[str]:
        return READ_BY_TGI


class CompletionLogprobs(Struct, frozen=True):
    """One entry a token in each list.

    `text_offset` is where in the choice's text the token begins, in characters. `top_logprobs`
    has the likeliest tokens by their texts, and the one that was taken. Nothing is before the first
    token of a prompt: it has null in both.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """`finish_reason` is null in a stream until the choice's last chunk.

    `prompt_logprobs` are vLLM's, where they are asked for: in a stream in the first chunk of the
    first choice of each prompt.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET


class Completion(Struct, frozen=True, kw_only=True):
    """A whole reply, or a chunk of a stream."""

    object: Literal["text_completion"] = "text_completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET

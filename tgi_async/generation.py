"""A generation: what the API asks for, and what it gets.

The API layer builds a `GenerationRequest` of token ids and gets a `Generation`: an asynchronous
iterator over what has been emitted since it last looked. It never sees steps, rows or blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

from tgi_async.scheduler.blocks import Salt
from tgi_async.scheduler.request import FinishReason as FinishReason
from tgi_async.scheduler.reservations import Reservation
from tgi_async.wire.messages import Image, Sampling, Span


class GenerationRequest(Struct, frozen=True):
    """What to generate, as the API makes it from a request body.

    `max_new_tokens` None means: up to the longest sequence the server allows. The engine raises
    `errors.ValidationError` for a request that can never fit.
    """

    prompt: list[int]
    sampling: Sampling
    client: str = ""
    """The client that fairness counts this for: (API key, peer address)."""
    weight: int = 1
    """The client's share of a busy server beside others."""
    tenant: str = ""
    """Who may be drafted for with what this request is answered."""
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = True
    """Whether the text ends with the stop sequence or the text of the token that ends it (TGI), or
    right before (OpenAI)."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token, for benchmarks of fixed length."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end this text too, besides the model's own; `ignore_eos` does not affect them."""
    prompt_logprobs: bool = False
    prompt_top_n_tokens: int = 0
    """How many of the likeliest tokens to report at each prompt token, with `prompt_logprobs`."""
    grammar: str = ""
    """A checked grammar that constrains the output, encoded by `grammar.encode`; or empty."""
    shown: dict[int, str] = {}
    """Special tokens that are part of the text, by name: marks of tool calls and of thoughts."""
    salts: tuple[Salt, ...] = ()
    """The salts of the prefix cache, in order of position."""
    images: tuple[Image, ...] = ()
    """In order of position."""
    held: tuple[object, ...] = ()
    """What lives as long as this request: the files of its images."""
    spans: tuple[Span, ...] = ()
    """Positions of the prompt that attend to each other in both directions, in order."""
    reservation: Reservation | None = None
    """The reservation that its row belongs to, for a request over HTTP."""
    special_texts: Mapping[int, str] = {}
    """The names of all special tokens, where the text shows them; else empty."""


class TopToken(NamedTuple):
    """A `wire.messages.TopToken` with its text."""

    id: int
    text: str
    logprob: float
    special: bool


class Token(NamedTuple):
    """An emitted token. The texts of a generation's tokens concatenate to its whole text.

    `text` is what the token adds to it: empty while a character is incomplete or might become a
    stop sequence that is to be cut off, and for a special token, unless the request has it
    shown, or it is the last one and something was still held back.
    """

    id: int
    text: str
    logprob: float | None
    special: bool
    top: tuple[TopToken, ...] = ()


class Drafts(NamedTuple):
    """Drafts of a generation's tokens."""

    verified: int
    accepted: int
    """How many of them are among its tokens."""

    @property
    def rejected(self) -> int:
        return self.verified - self.accepted

    @classmethod
    def sum(cls, of: Iterable[Drafts]) -> Drafts:
        """Return the drafts of several generations."""
        drafts = list(of)
        return cls(sum(one.verified for one in drafts), sum(one.accepted for one in drafts))


class Timings(Struct):
    """Seconds, on the engine's monotonic clock."""

    queued: float = 0.0
    """From submission to the first step that computed anything."""
    inference: float = 0.0
    """From that step to the end."""


class Emitted(Struct, frozen=True):
    """The tokens since the last `Emitted`. `finish_reason` is set on the last one."""

    tokens: list[Token]
    finish_reason: FinishReason | None

    def apart(self) -> list[Emitted]:
        """Return each token as if it had come alone."""
        *others, last = self.tokens
        return [*(Emitted([one], None) for one in others), Emitted([last], self.finish_reason)]

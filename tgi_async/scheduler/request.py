"""A request in the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

from msgspec import Struct

from tgi_async.scheduler.blocks import BlockTable, Key, Node, Salt, keys_of
from tgi_async.scheduler.reservations import Reservation
from tgi_async.scheduler.weights import UNIT
from tgi_async.wire.messages import Image, Sampling, Span, TopToken

GREEDY = Sampling()
FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Request:
    """A `GenerationRequest` in the scheduler: its known tokens, planned positions and blocks.

    Three counts grow along the sequence, `n_computed <= n_planned <= length`: `length` counts the
    known tokens and the `n_in_flight` sampled ones that have not come back yet, `n_planned` the
    positions that some step sent has computed or will, the table's `n_computed` those acknowledged.
    """

    id: int
    prompt: InitVar[list[int]]
    max_new_tokens: int
    _: KW_ONLY
    client: str = ""
    weight: int = 1
    """Of the client, against others: from 1 to `weights.MOST_WEIGHT`."""
    tenant: str = ""
    """Who may be drafted for with what this request is answered."""
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    grammar: str = ""
    """The encoded grammar, or empty."""
    prompt_logprobs: bool = False
    """These need every prompt position computed, so they take no hits."""
    prompt_top_n_tokens: int = 0
    salts: tuple[Salt, ...] = ()
    images: tuple[Image, ...] = ()
    spans: tuple[Span, ...] = ()
    """Positions of the prompt that attend to each other in both directions: each is computed in one
    step, and no hit ends within."""
    reservation: Reservation | None = None
    """The reservation that its row belongs to; None: not counted."""
    text_end: Callable[[list[int]], int | None] | None = None
    """Returns after how many of the next tokens a stop sequence ends the text, None if not with any
    of them. It is asked where several tokens come at once; None: nothing but a token ends it."""

    tokens: list[int] = field(init=False)
    n_prompt: int = field(init=False)
    price: int = field(init=False)
    """What a unit of service costs its client."""
    limit: int = field(init=False)
    """Most positions this request can ever compute: its last token is never an input."""
    keys: list[Key] = field(default_factory=list, init=False)
    """Keys of the full blocks, computed once."""
    status: Status = field(default=Status.WAITING, init=False)
    arrival: int = field(default=0, init=False)
    charged: bool = field(default=False, init=False)
    """Whether it has run."""
    table: BlockTable | None = field(default=None, init=False)
    row: int = field(default=-1, init=False)
    n_cached: int = field(default=0, init=False)
    """Prompt tokens that were in the prefix cache when it was first admitted."""
    n_drafts: int = field(default=0, init=False)
    """Drafts that were verified for it."""
    n_accepted: int = field(default=0, init=False)
    """How many of them are among its tokens."""
    n_planned: int = field(default=0, init=False)
    n_in_flight: int = field(default=0, init=False)
    n_prompt_logprobs: int = field(default=0, init=False)
    """Prompt positions before this have had their log-probabilities reported."""
    prefill_end: int = field(default=0, init=False)
    """Tokens known at admission, or since a grammar forced some: the row samples when it has
    computed these."""
    preempted: bool = field(default=False, init=False)
    """Whether it has given its blocks to others, since the workers started."""
    decoding: bool = field(default=False, init=False)
    """Whether it has sampled, or tried to, since it was admitted: its prefill is over."""
    waits_for: Node | None = field(default=None, init=False)
    lacking: int = field(default=0, init=False)
    """Blocks it needed when it last did not fit, plus `BlockManager.n_shared` of that time."""

    def __post_init__(self, prompt: list[int]) -> None:
        self.tokens = list(prompt)
        self.n_prompt = len(prompt)
        self.limit = self.n_prompt + self.max_new_tokens - 1
        self.price = UNIT // self.weight

    @property
    def least_chunk(self) -> int:
        """The fewest tokens that its first chunk can have, where nothing is hit."""
        return self.spans[0].end if self.spans and not self.spans[0].start else 1

    def whole(self, end: int) -> int:
        """Return where a chunk that would end here ends: not within a span, but before it if the
        chunk has what is before, else behind it."""
        for span in self.spans:
            if span.start < end < span.end:
                return span.start if span.start > self.n_planned else span.end
        return end

    def outside(self, end: int) -> int:
        """Return the last place up to `end` that is not within a span."""
        for span in self.spans:
            if span.start < end < span.end:
                return span.start
        return end

    def hit_end(self, end: int, block_size: int) -> int:
        """Return how many positions of a hit that ends here are used: whole blocks, whole spans."""
        while (least := self.outside(end) // block_size * block_size) < end:
            end = least
        return end

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether the log-probabilities of its prompt are still to be reported."""
        return self.prompt_logprobs and self.n_emitted == 0

    @property
    def n_emitted(self) -> int:
        return len(self.tokens) - self.n_prompt

    def requeue(self) -> None:
        """Return to waiting, with nothing computed or in flight."""
        self.status = Status.WAITING
        self.table = None
        self.row = -1
        self.n_planned = 0
        self.n_in_flight = 0
        self.waits_for = None
        self.lacking = 0
        self.preempted = False

    def rewind(self, n_emitted: int, n_prompt_logprobs: int) -> None:
        """Forget the tokens and prompt log-probabilities beyond those that were delivered."""
        del self.tokens[self.n_prompt + n_emitted :]
        self.keys.clear()
        self.n_prompt_logprobs = min(self.n_prompt_logprobs, n_prompt_logprobs)

    def block_keys(self, block_size: int) -> list[Key]:
        """Return the keys of the blocks that the known tokens fill."""
        n_made = len(self.keys) * block_size
        if len(self.tokens) - n_made >= block_size:
            self.keys += keys_of(self.tokens[n_made:], block_size, self.salts, n_made)
        return self.keys


class TokenEvent(Struct, frozen=True):
    """A request emitted a token, its last one if `finish_reason` is set."""

    request: Request
    token: int
    logprob: float | None
    top: list[TopToken]
    """The likeliest tokens at its position; empty if none are wanted."""
    finish_reason: FinishReason | None


class PromptEvent(NamedTuple):
    """Log-probabilities and ranks of prompt tokens from `start` on, and the likeliest ones where
    wanted."""

    request: Request
    start: int
    logprobs: list[float]
    top: list[list[TopToken]]
    ranks: list[int]


class FailedEvent(NamedTuple):
    """A request failed; the others go on."""

    request: Request
    message: str


Event = TokenEvent | PromptEvent | FailedEvent

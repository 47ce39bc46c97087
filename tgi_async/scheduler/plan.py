"""The limits of a step, and the plan of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from tgi_async.scheduler.blocks import BlockTable
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.reservations import Capacity
from tgi_async.wire.messages import Admit, CachePool, Grow, Run, Step

MAX_LOGITS = 512
"""Most places of a step, besides one of each row, whose logits are computed: those of prompt tokens
whose log-probabilities are asked for, and of drafts. Over the whole vocabulary, they are in a
worker's memory together."""


class Budget(NamedTuple):
    """The scheduler's limits."""

    pools: Sequence[CachePool]
    """Of the model's cache groups."""
    block_size: int
    max_rows: int
    max_batch_prefill_tokens: int
    """Most prefill tokens in a step. Beside decodes it is at most half of them, so that a decoding
    row waits half as long; prompts lose little by being computed in smaller chunks."""
    max_total_tokens: int
    """Most tokens of a request, prompt and output."""
    overcommit: float = 4.0
    """How many times the pool the running requests may grow to, if all reach their limits."""
    lookahead: int = 1
    """Steps planned before the results of the ones before are known."""
    max_drafts: int = 0
    """Most drafts that the workers verify behind a decoding row's token in one step. All of a step
    get what prompts leave of its prefill tokens, or as many as these where there is no prompt."""
    max_logits: int = MAX_LOGITS
    capacity: Capacity = Capacity()
    """What requests may reserve, running and waiting ones together."""
    beside_decodes: Sequence[int] = ()
    """Most prefill tokens beside one decode, beside two, and so on; beside more as beside the last.
    Empty: the half."""

    def prefill_tokens(self, n_decodes: int) -> int:
        """Return the most prefill tokens in a step of so many decodes."""
        if not n_decodes:
            return self.max_batch_prefill_tokens
        if not self.beside_decodes:
            return half(self.max_batch_prefill_tokens)
        return self.beside_decodes[min(n_decodes, len(self.beside_decodes)) - 1]


def half(max_batch_prefill_tokens: int) -> int:
    """Return the most prefill tokens of a step beside decodes, whatever a step costs."""
    return -(-max_batch_prefill_tokens // 2)


class Plan(NamedTuple):
    """A planned step, and its statistics."""

    step: Step
    admitted: list[Request]
    n_prefill_tokens: int
    """Prompt tokens, and those of a grammar behind a decode's first one. Drafts are not of them."""
    n_decodes: int


class ScheduledRow(Struct):
    """A row of a step in flight. The table distinguishes this admission from a later one."""

    request: Request
    table: BlockTable
    row: int
    n: int
    """Positions that it computes, drafts included: those that are not accepted do not count."""
    n_drafts: int
    """How many of them are for drafts."""
    samples: bool
    """Whether the row samples a token in this step, as far as is known."""


class StepBuilder:
    """A step being planned."""

    def __init__(self, step: int, max_logits: int) -> None:
        self.step = step
        self.left = 0
        """Prefill tokens left in the budget."""
        self.logits_left = max_logits
        """Of prompt tokens and drafts."""
        self.spare = 0
        """Blocks beyond what the running rows need for this step and the next."""
        self.run: list[Run] = []
        self.grow: list[Grow] = []
        self.admit: list[Admit] = []
        self.admitted: list[Request] = []
        self.scheduled_rows: list[ScheduledRow] = []

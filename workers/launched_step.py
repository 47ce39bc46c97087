"""A step whose results have not been collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Encoded, PromptLogprobs, RowError, Sampled, TopToken
from workers.sampling.output import FetchedOutput, Picked
from workers.table import Row
from workers.timing import Mark
from workers.transfer import Fetched, send


class SamplingBatch(NamedTuple):
    """Rows whose next token is to be sampled."""

    rows: list[int]
    logits: torch.Tensor
    """[len(rows), V], without drafts"""
    masks: Sequence[NDArray[np.int32] | None]
    """The grammar masks of the rows, None for those without a grammar."""
    picked: Picked | None = None
    """Tokens of the same rows, where the device has sampled already."""
    stored: bool = False
    """Whether each row's `picked` token is already stored as its last token."""
    drafts: Sequence[Sequence[int]] = ()
    """Drafts of the first rows, those with the most first. The logits at the places behind them
    come after those of all rows: of all that have a first draft, then of all that have a second,
    and so on."""
    hidden: torch.Tensor | None = None
    """[len(logits), hidden]: the hidden states that the logits were made of, where asked for."""

    def pick(self, places: Sequence[int]) -> SamplingBatch:
        """Return the rows at these indices, without drafts."""
        some = send(np.asarray(places, np.int64), self.logits.device)
        return SamplingBatch(
            [self.rows[place] for place in places],
            self.logits[some],
            [self.masks[place] for place in places],
            None if self.picked is None else Picked(*(x[some] for x in self.picked)),
            self.stored,
            hidden=None if self.hidden is None else self.hidden[some],
        )


class FetchedPromptLogprobs(NamedTuple):
    """Log-probabilities of a prompt's tokens, being copied to the host."""

    row: int
    first: int
    """Position of the first of them."""
    parts: list[Fetched]
    """For some tokens each: log-probabilities float32 [n], ranks int64 [n]; where asked for, ids
    int64 [n, N] and log-probabilities float32 [n, N] of the likeliest, best first."""

    def to_wire(self) -> PromptLogprobs:
        """Return the message for the router. Waits for the device."""
        logprobs: list[float] = []
        ranks: list[int] = []
        top: list[list[TopToken]] = []
        for part in self.parts:
            chosen, rank, *best = part.tensors()
            logprobs += chosen.tolist()
            ranks += rank.tolist()
            if best:
                lines = zip(*(x.tolist() for x in best), strict=True)
                top += [[TopToken(*pair) for pair in zip(*line, strict=True)] for line in lines]
        return PromptLogprobs(self.row, self.first, logprobs, top, ranks)


@dataclass(slots=True)
class LaunchedStep:
    """A step whose results may still be computed on the device."""

    step: int
    rows: dict[int, Row]
    """The rows of the step. Other requests may have their row numbers when it is collected."""
    to_sample: list[SamplingBatch] = field(default_factory=list)
    """Rows still to be sampled; more than one entry only where rows had to run alone."""
    outputs: list[tuple[list[int], FetchedOutput]] = field(default_factory=list)
    """Rows that sampled, and their results."""
    sampled: list[Sampled] = field(default_factory=list)
    """Results that are on the host already."""
    verified: list[Sampled] = field(default_factory=list)
    """Those of rows with drafts, whose grammars follow them already."""
    jump_forward_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Jump-forward tokens, for rows with more than the sampled token."""
    masks_not_ready: list[int] = field(default_factory=list)
    prompt_logprobs: list[FetchedPromptLogprobs] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    forwards: list[tuple[Mark, Mark]] = field(default_factory=list)
    """Begin and end of each forward pass."""
    n_encoded: int = 0
    """Images that went through the encoder."""
    encodings: list[tuple[Mark, Mark]] = field(default_factory=list)
    samplings: list[tuple[Mark, Mark]] = field(default_factory=list)

    def encoded(self) -> Encoded | None:
        """Return how many images were encoded, if any. Waits for the device."""
        return Encoded(self.n_encoded, seconds(self.encodings)) if self.n_encoded else None

    @property
    def ready(self) -> bool:
        """Whether its results are on the host."""
        return all(output.ready for _, output in self.outputs)


def seconds(spans: list[tuple[Mark, Mark]]) -> float:
    """Return the total seconds of these spans. Waits for the device."""
    return sum(begin.until(end) for begin, end in spans)

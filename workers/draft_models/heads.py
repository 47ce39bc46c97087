"""Greedy drafts out of the scores of heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from workers.speculation.source import Proposal

AT_ONCE = 256
"""Hidden states that a head is applied to at once, which bounds the memory of their scores."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, hidden] -> scores [n, any]."""


def best(head: Head, states: torch.Tensor) -> torch.Tensor:
    """Return which score of each hidden state [n, hidden] is the highest, int64 [n]."""
    return torch.cat([head(some).argmax(-1) for some in states.split(AT_ONCE)])


def proposals(tokens: torch.Tensor, limits: Sequence[int]) -> list[Proposal]:
    """Return the drafts of each row, of int64 [rows, any], no more than its limit."""
    each = zip(tokens.tolist(), limits, strict=True)
    return [Proposal(found[:limit]) for found, limit in each]

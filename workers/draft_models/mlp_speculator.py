"""MLP speculator: stages that each guess a token from the stage before and the token it guessed.

The first stage has the model's hidden state and the token sampled from it. A stage adds to a
projection of the state the embedding of the token, weighted so that in the end the hidden state
and the tokens count half each. See https://arxiv.org/abs/2404.19124.

A stage is an embedding and a head of vocabulary * inner numbers each, and a projection; with tied
weights all stages have the same, but for the first one's projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn.functional import embedding, gelu

from workers.draft_models.checkpoint import DraftCheckpoint
from workers.draft_models.config import DraftModel
from workers.draft_models.heads import best, proposals
from workers.layers.linear import Linear
from workers.speculation.source import DraftRows, Proposal
from workers.transfer import send

EPS = 1e-6


class _Stage(NamedTuple):
    projection: Linear
    words: _Words


class _Words(NamedTuple):
    """What a stage has besides its projection."""

    embedding: torch.Tensor
    """[vocabulary, inner]"""
    scale: torch.Tensor
    """[inner], and so the shift."""
    shift: torch.Tensor
    head: Linear


class MlpSpeculatorSource:
    """See `source.DraftSource`."""

    method: ClassVar[str] = "mlp_speculator"
    wants_hidden: ClassVar[bool] = True

    def __init__(self, checkpoint: DraftCheckpoint, model: DraftModel, n_heads: int) -> None:
        """Load the first `n_heads` stages. Raises UnsupportedModel."""
        self._target = target = checkpoint.target
        config = model.config
        inner = config.get("inner_dim") or config.get("emb_dim")
        if not isinstance(inner, int) or inner < 1:
            raise checkpoint.problem(f"its inner_dim must be a number. Given: {inner!r}")
        tied = config.get("tie_weights", False)
        self._scale_input = config.get("scale_input", False)
        # By the stages that it was trained with, however many are used.
        state = 0.5 ** (0.5 / model.n_heads)
        self._token_weight = math.sqrt((1 - state**2) * inner / 2) / state
        self._last: dict[int, int] = {}
        """Of each row, its last token."""
        sizes = [target.hidden_size, *[inner] * (n_heads - 1)]
        projections = [
            checkpoint.linear(f"speculator.proj.{at}", inner, size)
            for at, size in enumerate(sizes[:2] if tied else sizes)
        ]
        words = [
            _Words(
                checkpoint.take(f"speculator.emb.{at}.weight", target.vocab_size, inner),
                checkpoint.take(f"speculator.ln.{at}.weight", inner),
                checkpoint.take(f"speculator.ln.{at}.bias", inner),
                checkpoint.linear(f"speculator.head.{at}", target.vocab_size, inner),
            )
            for at in range(1 if tied else n_heads)
        ]
        # Those that all others have are the last.
        self._stages = [
            _Stage(projections[min(at, len(projections) - 1)], words[min(at, len(words) - 1)])
            for at in range(n_heads)
        ]

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        """See `source.DraftSource`."""
        self._last[row] = tokens[-1]

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        """See `source.DraftSource`."""
        if tokens:
            self._last[row] = tokens[-1]

    def release(self, row: int) -> None:
        """See `source.DraftSource`."""
        self._last.pop(row, None)

    @torch.inference_mode()
    def propose(self, wanted: DraftRows) -> list[Proposal]:
        """Return what each stage finds likeliest. Raises ValueError without hidden states."""
        if wanted.hidden is None:
            raise ValueError("an MLP speculator drafts from hidden states, and was given none")
        if not wanted.rows:
            return []
        last = np.fromiter((self._last[row] for row in wanted.rows), np.int64, len(wanted.rows))
        tokens = send(last, self._target.device)
        state = wanted.hidden.to(self._target.dtype)
        if self._scale_input:
            state = _normed(state) * math.sqrt(0.5)
        found = []
        for project, words in self._stages[: max(wanted.limits)]:
            said = embedding(tokens, words.embedding)
            state = project(state) + self._token_weight * said
            state = gelu(words.scale * _normed(state) + words.shift)
            tokens = best(words.head, state)
            found.append(tokens)
        return proposals(torch.stack(found, 1), wanted.limits)


def _normed(x: torch.Tensor) -> torch.Tensor:
    """Return rows whose squares have the mean 1."""
    exact = x.float()
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)

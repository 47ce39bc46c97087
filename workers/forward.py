"""One forward pass of a model: its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from workers.attention.context import AttentionContext


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """Tokens of several rows, packed: one of each decode row, then the chunks of prompts.

    Raises ValueError for parts that do not fit each other.
    """

    tokens: torch.Tensor | None
    """int64 [T]; None where there are embeddings instead."""
    positions: torch.Tensor
    """int64 [T], or [axes, T]."""
    wanted: torch.Tensor
    """int64 [S]: indices of packed tokens whose logits are wanted, any number for a row."""
    attention: AttentionContext
    embeddings: torch.Tensor | None = None
    """[T, hidden]"""
    adapters: torch.Tensor | None = None
    """int64 [rows]: the adapter of each row, in the order of the packed tokens."""
    encoder_states: Sequence[torch.Tensor | None] | None = None
    """[any, hidden] for each row."""
    hidden: bool = False
    """Whether the hidden states of the wanted tokens are asked for beside their logits."""

    def __post_init__(self) -> None:
        given = self.embeddings if self.tokens is None else self.tokens
        n_tokens = self.attention.n_tokens
        if given is None or (self.tokens is not None and self.embeddings is not None):
            raise ValueError("a forward pass takes either tokens or embeddings")
        if not len(given) == self.positions.shape[-1] == n_tokens:
            raise ValueError(
                f"{len(given)} tokens at {self.positions.shape[-1]} positions do not fit attention "
                f"over {n_tokens} tokens"
            )

    def text(self, model: str) -> torch.Tensor:
        """Return the tokens, for a `model` (its name, for messages) that takes nothing else.

        Raises ValueError for a batch that has more than tokens and one axis of positions.
        """
        if (
            self.tokens is not None
            and self.positions.dim() == 1
            and self.adapters is None
            and self.encoder_states is None
        ):
            return self.tokens
        asked = {
            "embeddings": self.embeddings is not None,
            f"positions of {self.positions.dim()} dimensions": self.positions.dim() != 1,
            "adapters": self.adapters is not None,
            "encoder states": self.encoder_states is not None,
        }
        given = ", ".join(name for name, there in asked.items() if there)
        raise ValueError(f"{model} takes tokens at one axis of positions, and was given {given}")


class ForwardOutput(NamedTuple):
    """The outputs of a forward pass."""

    logits: torch.Tensor
    """[S, vocabulary]"""
    hidden_states: torch.Tensor | None = None
    """[S, hidden] in the model's dtype, as the language-model head takes them, behind the last
    norm; None where they were not asked for."""


class Model(Protocol):
    """A causal language model over packed tokens and a paged cache."""

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Compute a batch. The new keys and values are in the cache afterwards.

        Raises ValueError for a batch that has parts which the model does not take, and RuntimeError
        where the batch, or a row of it, cannot be computed.
        """
        ...


class HeadedModel(Model, Protocol):
    """A model whose language-model head can be used apart from it."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [n, vocabulary] of hidden states [n, hidden], in any float dtype: what logits are
        before they are scaled and capped, which does not change their order."""
        ...

"""How the layers of a model attend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class AttentionWindow(NamedTuple):
    """Which past keys a query may attend to; both limits apply."""

    window: int = 0
    """The last so many, its own included; 0: all."""
    chunk: int = 0
    """Those of its own chunk, the text being cut every so many positions; 0: all."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """How one layer attends."""

    index: int
    """Of its keys and values in the cache."""
    scale: float
    window: int = 0
    chunk: int = 0
    """Both as in `AttentionWindow`."""
    softcap: float = 0.0
    """Bound of the scores; 0: none."""
    sinks: torch.Tensor | None = None
    """float32 [n_heads]: the score of a key without a value, for each head."""
    slopes: torch.Tensor | None = None
    """float32 [n_heads]: what a head's score falls by for each token between key and query
    (ALiBi)."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes of attention in a model, on this rank."""

    n_heads: int
    """Of the layer that has most to each key-value head; others may have fewer."""
    n_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def group(self) -> int:
        """Heads that share a key-value head."""
        return self.n_heads // self.n_kv_heads

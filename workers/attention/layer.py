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


class AttentionSpec(NamedTuple):
    """How a layer attends, on this rank: what its model says of it before any batch."""

    n_heads: int
    n_kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: AttentionWindow = AttentionWindow()
    softcap: float = 0.0
    """Bound of the scores; 0: none."""
    sinks: bool = False
    """Whether each head has a score for a key without a value."""
    slopes: bool = False
    """Whether a head's score falls with the distance of the key (ALiBi)."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """What a backend is given of a layer in a forward pass."""

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

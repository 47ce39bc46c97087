"""Paged attention as transformers' attention modules call it, whatever the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from workers.attention.context import AttentionContext
from workers.attention.reach import Reach

# What transformers hands to every attention function without changing what is to be attended:
# `position_ids` is in the keys and queries already, the rest says what to return or to keep.
HARMLESS = frozenset(
    {
        "cache_position",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


class Attend(Protocol):
    """Puts new keys and values into the cache and attends."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        context: AttentionContext,
        scale: float,
        window: int,
        softcap: float,
        chunk: int = 0,
        sinks: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Query [1, n_heads, n_tokens, head_dim], key and value [1, n_kv_heads, n_tokens,
        head_dim], of the cache's dtype -> [1, n_tokens, n_heads, head_dim].

        Zero is no window, no softcap, no chunks: see `Reach`. `sinks`, float32 [n_heads]: the score
        of a key without a value, for each head. `slopes`, float32 [n_heads]: what a head's score
        falls by for each token between key and query (ALiBi).

        Raises ValueError for tensors that do not fit the cache and the context.
        """
        ...


class PagedAttention:
    """An attention function for transformers' AttentionInterface."""

    BLOCK_SIZE = 16
    """Positions of a page that suit it, where none are asked for."""

    def __init__(self, attend: Attend, notes: Sequence[str] = ()) -> None:
        self._attend = attend
        self.notes = list(notes)
        """What was given up, for a person."""
        self.reaches: dict[int, Reach] = {}
        """Of layers that were traced; others have the `sliding_window` they are called with."""
        self._context: AttentionContext | None = None

    @contextmanager
    def over(self, context: AttentionContext) -> Iterator[None]:
        """Forward passes of models within are about `context`."""
        self._context = context
        try:
            yield
        finally:
            self._context = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        is_causal: bool | None = None,
        s_aux: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Query [1, n_heads, n_tokens, key_dim], key [1, n_kv_heads, n_tokens, key_dim], both
        rotated, value [1, n_kv_heads, n_tokens, value_dim] -> [1, n_tokens, n_heads, value_dim].
        The keys and values are in the cache afterwards; heads and dims that the cache has more of
        are filled up with zeros. `s_aux` are `Attend`'s sinks, `alibi_slopes` its slopes.

        Raises ValueError, naming it, for whatever it would have to ignore.
        """
        context = self._context
        if context is None:
            raise RuntimeError("a model with paged attention runs within PagedAttention.over")
        meaningful = [name for name, x in kwargs.items() if x is not None and name not in HARMLESS]
        if attention_mask is not None:
            meaningful.append("attention_mask")
        if dropout:
            meaningful.append("dropout")
        if is_causal is False or not getattr(module, "is_causal", True):
            meaningful.append("is_causal=False")
        if meaningful:
            raise ValueError(
                f"{type(module).__name__} asks for attention with {', '.join(meaningful)}, which "
                "paged attention does not do: it takes causal attention with a scaling, a "
                "window or chunks, a softcap, sinks and slopes. This model cannot be served."
            )
        layer: int = module.layer_idx  # type: ignore[assignment]
        reach = self.reaches.get(layer) or Reach(window=sliding_window or 0)
        cache = context.cache
        n_heads, dim, value_dim = query.shape[1], cache.head_dim, value.shape[3]
        scale = query.shape[3] ** -0.5 if scaling is None else float(scaling)
        most_heads = n_heads // key.shape[1] * cache.n_kv_heads
        out = self._attend(
            _filled(query, most_heads, dim),
            _filled(key, cache.n_kv_heads, dim),
            _filled(value, cache.n_kv_heads, dim),
            layer,
            context,
            scale,
            reach.window,
            softcap or 0.0,
            reach.chunk,
            _per_head(s_aux, most_heads),
            _per_head(alibi_slopes, most_heads),
        )
        return out[:, :, :n_heads, :value_dim], None


def _filled(x: torch.Tensor, n_heads: int, dim: int) -> torch.Tensor:
    """[1, heads, n_tokens, dims] with zeros added to be [1, n_heads, n_tokens, dim]."""
    more = (0, dim - x.shape[3], 0, 0, 0, n_heads - x.shape[1])
    return pad(x, more) if any(more) else x


def _per_head(x: torch.Tensor | None, n_heads: int) -> torch.Tensor | None:
    if x is None:
        return None
    return pad(x.detach().float().reshape(-1), (0, n_heads - x.numel())).contiguous()

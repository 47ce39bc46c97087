"""Paged attention as transformers' attention modules call it, whatever the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from workers.attention.context import AttentionContext

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
    ) -> torch.Tensor:
        """Query [1, n_heads, n_tokens, head_dim], key and value [1, n_kv_heads, n_tokens,
        head_dim], of the cache's dtype -> [1, n_tokens, n_heads, head_dim]. Zero is no window, no
        softcap."""
        ...


class PagedAttention:
    """An attention function for transformers' AttentionInterface."""

    BLOCK_SIZE = 16
    """Positions of a page that suit it, where none are asked for."""

    def __init__(self, attend: Attend, notes: Sequence[str] = ()) -> None:
        self._attend = attend
        self.notes = list(notes)
        """What was given up, for a person."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        tgi_ctx: AttentionContext,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Query [1, n_heads, n_tokens, head_dim], key and value [1, n_kv_heads, n_tokens,
        head_dim], rotated -> [1, n_tokens, n_heads, head_dim]. The keys and values are in the
        cache afterwards.

        Raises ValueError, naming it, for whatever it would have to ignore.
        """
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
                "paged attention does not do: it takes causal attention with a scaling, a sliding "
                "window and a softcap. This model cannot be served."
            )
        out = self._attend(
            query,
            key,
            value,
            module.layer_idx,  # type: ignore[arg-type]
            tgi_ctx,
            query.shape[-1] ** -0.5 if scaling is None else scaling,
            sliding_window or 0,
            softcap or 0.0,
        )
        return out, None

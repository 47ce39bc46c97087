"""Paged attention for transformers' attention modules, with any backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface

from workers.attention.backend import AttentionBackend
from workers.attention.context import AttentionContext
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionLayer, AttentionWindow

NAME = "tgi_paged"
"""`attn_implementation` of models that use paged attention."""

# Arguments that transformers gives to every attention function without effect on the result:
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


class PagedAttention:
    """The attention of one transformers model."""

    def __init__(self, backend: AttentionBackend[Any], windows: Sequence[AttentionWindow]) -> None:
        """Hold the attention. `windows` are those of the layers, by number."""
        self._backend = backend
        self._in_both_directions = TorchAttention(backend.shape)
        """For batches with tokens that attend to later ones, if the backend does not take these."""
        self._windows = windows
        self._plain: dict[tuple[int, float, float], AttentionLayer] = {}

    @contextmanager
    def over(self, batch: AttentionContext) -> Iterator[None]:
        """Run forward passes of the model, in this thread, over `batch`."""
        token = _running.set(_Pass(self, batch))
        try:
            yield
        finally:
            _running.reset(token)

    def attend(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: AttentionContext,
    ) -> torch.Tensor:
        """Attend, see `AttentionBackend.forward`; heads and dims that the cache has more of are
        padded with zeros."""
        n_heads, value_dim = query.shape[1], value.shape[3]
        n_kv_heads, dim = batch.cache.n_kv_heads, batch.cache.head_dim
        most_heads = n_heads // key.shape[1] * n_kv_heads
        backend = self._backend
        if backend.causal_only and not batch.causal:
            backend = self._in_both_directions
        out = backend.forward(
            layer,
            _filled(query, most_heads, dim),
            _filled(key, n_kv_heads, dim),
            _filled(value, n_kv_heads, dim),
            batch,
        )
        return out[:, :, :n_heads, :value_dim]

    def layer(
        self,
        index: int,
        scale: float,
        softcap: float,
        sinks: torch.Tensor | None,
        slopes: torch.Tensor | None,
    ) -> AttentionLayer:
        """Return how a layer attends. Sinks and slopes have a number for each head of the cache."""
        key = (index, scale, softcap)
        found = self._plain.get(key)
        if found is None or sinks is not None or slopes is not None:
            window, chunk = self._windows[index]
            found = AttentionLayer(index, scale, window, chunk, softcap, sinks, slopes)
            if sinks is None and slopes is None:
                self._plain[key] = found
        return found


class _Pass(NamedTuple):
    """A running forward pass."""

    attention: PagedAttention
    batch: AttentionContext


_running: ContextVar[_Pass | None] = ContextVar("paged_attention", default=None)


def paged_attention(
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
    """Attend in the forward pass that runs, as transformers' AttentionInterface asks for it.

    Query [1, n_heads, n_tokens, key_dim], key [1, n_kv_heads, n_tokens, key_dim], both rotated,
    value [1, n_kv_heads, n_tokens, value_dim] -> [1, n_tokens, n_heads, value_dim]. The keys and
    values are in the cache afterwards. `s_aux` are the layer's sinks, `alibi_slopes` its slopes;
    its window is the one that was traced, whatever `sliding_window` says.

    Raises ValueError, naming it, for whatever it would have to ignore.
    """
    running = _running.get()
    if running is None:
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
    attention, batch = running
    index: int = module.layer_idx  # type: ignore[assignment]
    most_heads = query.shape[1] // key.shape[1] * batch.cache.n_kv_heads
    layer = attention.layer(
        index,
        query.shape[3] ** -0.5 if scaling is None else float(scaling),
        softcap or 0.0,
        _per_head(s_aux, most_heads),
        _per_head(alibi_slopes, most_heads),
    )
    return attention.attend(layer, query, key, value, batch), None


AttentionInterface.register(NAME, paged_attention)


def _filled(x: torch.Tensor, n_heads: int, dim: int) -> torch.Tensor:
    """Return [1, heads, n_tokens, dims] padded with zeros to [1, n_heads, n_tokens, dim]."""
    more = (0, dim - x.shape[3], 0, 0, 0, n_heads - x.shape[1])
    return pad(x, more) if any(more) else x


def _per_head(x: torch.Tensor | None, n_heads: int) -> torch.Tensor | None:
    if x is None:
        return None
    return pad(x.detach().float().reshape(-1), (0, n_heads - x.numel())).contiguous()

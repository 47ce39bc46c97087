"""What the attention of each layer of a model asks for, learned from one forward pass.

Names in configs differ from family to family, and many families say only in their masks which
layers have a window. So a model runs once, over two tokens, with an attention that attends to
nothing and writes down how it is called. Masks are made by `_mask`, whose every element is the
number of the window that was asked for, so that it is still known when the model has cut it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from workers.attention.layer import AttentionWindow

NAME = "tgi_traced"
"""`attn_implementation` of a model that is being traced."""
_FIRST = 41.0
"""In a mask, of the first window; one more for each that follows. Exact in bfloat16 up to 256."""


class TracedLayer(NamedTuple):
    """How one layer attends."""

    n_heads: int
    n_kv_heads: int
    key_dim: int
    value_dim: int
    window: AttentionWindow


class Untraceable(Exception):
    """A model attends in a way that paged attention does not; the message says which."""


class Tracer:
    """Layers by number, as the forward passes within `tracing` have shown them."""

    def __init__(self) -> None:
        self.layers: dict[int, TracedLayer] = {}
        self._windows: list[AttentionWindow] = []

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """In the place of `paged_attention`; attends to nothing. Raises Untraceable."""
        name = type(module).__name__
        at = getattr(module, "layer_idx", None)
        if not isinstance(at, int):
            raise Untraceable(f"{name} does not say which layer it is of")
        if at in self.layers:
            raise Untraceable(f"{name} of layer {at} attends more than once in a pass")
        asked = AttentionWindow(window=sliding_window or 0)
        if attention_mask is not None:
            asked = self._window(name, attention_mask)
            if sliding_window and asked.window != sliding_window:
                raise Untraceable(
                    f"{name} of layer {at} asks for a window of {sliding_window} and masks for one "
                    f"of {asked.window or 'no'} positions"
                )
        _, n_heads, n_tokens, key_dim = query.shape
        if key.shape[2] != n_tokens or n_heads % key.shape[1]:
            raise Untraceable(
                f"{name} of layer {at} attends with {n_heads} heads to {key.shape[2]} keys of "
                f"{key.shape[1]} heads where there are {n_tokens} tokens"
            )
        value_dim = value.shape[3]
        self.layers[at] = TracedLayer(n_heads, key.shape[1], key_dim, value_dim, asked)
        return query.new_zeros((1, n_tokens, n_heads, value_dim)), None

    def mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        *,
        config: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        local_size: int | None = None,
        use_vmap: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """A mask function for transformers' AttentionMaskInterface. Raises Untraceable."""
        if use_vmap:  # which transformers sets where a model brings a function of its own
            raise Untraceable(f"{config.model_type} has a mask of its own")
        if "allow_is_bidirectional_skip" in kwargs:
            raise Untraceable(f"{config.model_type} attends in both directions")
        size = local_size or 0
        chunked = size and size == getattr(config, "attention_chunk_size", None)
        if chunked and size == getattr(config, "sliding_window", None):
            raise Untraceable(f"{config.model_type} has windows and chunks of the same size")
        asked = AttentionWindow(chunk=size) if chunked else AttentionWindow(window=size)
        if asked not in self._windows:
            self._windows.append(asked)
        code = _FIRST + self._windows.index(asked)
        return torch.full((batch_size, 1, q_length, kv_length), code, dtype=dtype, device=device)

    def _window(self, name: str, mask: torch.Tensor) -> AttentionWindow:
        codes = set(mask.flatten().tolist())
        place = codes.pop() - _FIRST if codes else -1.0
        if codes or place not in range(len(self._windows)):
            raise Untraceable(f"{name} attends with a mask of its own")
        return self._windows[int(place)]


@contextmanager
def tracing(model: torch.nn.Module) -> Iterator[Tracer]:
    """Forward passes of a model within are traced."""
    tracer = Tracer()
    AttentionInterface.register(NAME, tracer.attend)
    AttentionMaskInterface.register(NAME, tracer.mask)
    configs = {id(config): config for config in map(_config, model.modules()) if config is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = NAME
    try:
        yield tracer
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _config(module: torch.nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation") else None

"""Idefics 1: gated layers between those of the text, which attend to one image at a time.

As in transformers' code: a token sees the last image up to it, none behind an end of a text. Where
none is seen nothing is attended to; the MLP of a gated layer is there for every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Image
from workers.vision.cross import CrossVision, expect


class IdeficsVision(CrossVision):
    """See `CrossVision`."""

    looks_ahead: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        """Put attention of ours into the model's layers."""
        super().__init__(model)
        self._config = model.config
        # Building the model has given it that of the text.
        self._config.vision_config._attn_implementation = "sdpa"
        self._layers = list(model.model.gated_cross_attn_layers)
        for at, layer in enumerate(self._layers):
            _patch(layer, self, at)

    @torch.inference_mode()
    def encode(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return keys and values."""
        sizes, model = self._config.vision_config, self._model.model
        side = sizes.image_size
        pixels = expect(arrays, "pixel_values", (1, sizes.num_channels, side, side))
        pixels = pixels.to(self._model.device, self._model.dtype)
        states = model.vision_model(pixel_values=pixels).last_hidden_state
        if self._config.use_resampler:
            states = model.perceiver_resampler(states)
        made = []
        for layer in self._layers:
            attention = layer.cross_attn
            keys, values = (
                projected(states[0]).unflatten(-1, (-1, attention.head_dim))
                for projected in (attention.k_proj, attention.v_proj)
            )
            if attention.qk_layer_norms:
                keys = attention.k_layer_norm(keys)
            made.append(torch.stack((keys, values)).transpose(1, 2))
        return torch.stack(made)

    def seen(
        self, tokens: NDArray[np.int64], images: Sequence[Image]
    ) -> list[tuple[int, int | None]]:
        """See `forward.Vision`."""
        ends_of_text = np.flatnonzero(np.isin(tokens, self._config.eos_token_id))
        found: list[tuple[int, int | None]] = []
        following = [image.start for image in images[1:]]
        for image, end in zip(images, (*following, None), strict=True):
            at = int(np.searchsorted(ends_of_text, image.start))
            behind = int(ends_of_text[at]) + 1 if at < len(ends_of_text) else None
            seen_until = min((one for one in (end, behind) if one is not None), default=None)
            found.append((image.start, seen_until))
        return found


def _patch(layer: Any, vision: IdeficsVision, number: int) -> None:
    """Have a layer attend to what is in view."""

    def forward(self: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if (view := vision.view) is not None:
            attention = self.cross_attn
            own = hidden_states[:, view.tokens]
            query = attention.q_proj(self.input_layernorm(own))[0]
            query = query.unflatten(-1, (-1, attention.head_dim))
            if attention.qk_layer_norms:
                query = attention.q_layer_norm(query)
            mixed = vision.mix(view, number, query, attention.scaling).flatten(1)
            own = own + self.alpha_cross_attn.tanh() * attention.o_proj(mixed[None])
            hidden_states = hidden_states.index_copy(1, view.tokens, own)
        more = self.mlp(self.post_attention_layernorm(hidden_states))
        return torch.addcmul(hidden_states, self.alpha_dense.tanh(), more)

    layer.forward = MethodType(forward, layer)

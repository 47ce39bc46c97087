"""Mllama: whole layers that attend to images instead of to text.

As in transformers' code: a token sees the last group of adjacent images up to it. Tokens before the
first image are not masked, so that they attend to all images of the prompt, to the tiles too that
an image does not fill; their MLP is left out. So what is before an image depends on it, and a
prompt's prefix is that of another one only where all their images are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.weak import WeakTensorKeyDictionary

from tgi_async.wire.messages import Image
from workers.vision.cross import CrossVision, expect


class MllamaVision(CrossVision):
    """See `CrossVision`."""

    looks_ahead: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        """Put attention of ours into the model's layers."""
        super().__init__(model)
        self._sizes = model.config.vision_config
        text = model.model.language_model
        numbers = sorted(text.cross_attention_layers)
        self._layers = [text.layers[number] for number in numbers]
        for at, layer in enumerate(self._layers):
            _patch(layer, self, at)
        # Those of the layers that attend to text follow each other in the KV cache.
        attending = [layer for at, layer in enumerate(text.layers) if at not in set(numbers)]
        for at, layer in enumerate(attending):
            layer.self_attn.layer_idx = at
        self._filled: Any = WeakTensorKeyDictionary()
        """How many keys of an encoding are of tiles that its image fills."""

    @torch.inference_mode()
    def encode(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return keys and values, those of tiles that the image fills first."""
        sizes, vision = self._sizes, self._model.model.vision_model
        tiles, side = sizes.max_num_tiles, sizes.image_size
        filled = expect(arrays, "aspect_ratio_mask", (1, 1, tiles))
        encoded = vision(
            pixel_values=expect(
                arrays, "pixel_values", (1, 1, tiles, sizes.num_channels, side, side)
            ),
            aspect_ratio_ids=expect(arrays, "aspect_ratio_ids", (1, 1)).to(vision.device),
            aspect_ratio_mask=filled.to(vision.device),
        ).last_hidden_state
        states = self._model.model.multi_modal_projector(encoded).flatten(0, 3)
        made = []
        for layer in self._layers:
            attention = layer.cross_attn
            keys, values = (
                projected(states).unflatten(-1, (-1, attention.head_dim))
                for projected in (attention.k_proj, attention.v_proj)
            )
            made.append(torch.stack((attention.k_norm(keys), values)).transpose(1, 2))
        encoding = torch.stack(made)
        self._filled[encoding] = int(filled.sum()) * vision.num_patches
        return encoding

    def seen(
        self, tokens: NDArray[np.int64], images: Sequence[Image]
    ) -> list[tuple[int, int | None]]:
        """See `forward.Vision`."""
        ends: list[int | None] = []
        end: int | None = None
        following: int | None = None
        """Where the next image stands."""
        for image in reversed(images):
            if following is not None and following != image.start + 1:
                end = following
            ends.append(end)
            following = image.start
        return [(image.start, end) for image, end in zip(images, reversed(ends), strict=True)]

    def visible(self, encoding: torch.Tensor, ahead: bool) -> torch.Tensor:
        """See `CrossVision.visible`."""
        return encoding if ahead else encoding[..., : self._filled[encoding], :]


def _patch(layer: Any, vision: MllamaVision, number: int) -> None:
    """Have a layer attend to what is in view."""

    def forward(self: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        view = vision.view
        if view is None:
            return hidden_states
        attention = self.cross_attn
        own = hidden_states[0, view.tokens]
        query = attention.q_proj(self.input_layernorm(own)).unflatten(-1, (-1, attention.head_dim))
        mixed = vision.mix(view, number, attention.q_norm(query), attention.scaling)
        own = own + self.cross_attn_attn_gate.tanh() * attention.o_proj(mixed.flatten(1))
        behind, ahead = own.tensor_split((view.n_behind,))
        if len(behind):
            more = self.mlp(self.post_attention_layernorm(behind))
            behind = behind + self.cross_attn_mlp_gate.tanh() * more
        return hidden_states.index_copy(1, view.tokens, torch.cat((behind, ahead))[None])

    layer.forward = MethodType(forward, layer)

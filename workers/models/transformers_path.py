"""Any causal language model of transformers whose attention goes through AttentionInterface."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from workers.attention import registry
from workers.attention.layer import AttentionShape
from workers.attention.paged import PagedAttention
from workers.forward import ForwardBatch, ForwardOutput, Vision
from workers.models.attention_patches import patch_attention
from workers.models.layers import PackedForward, layers_of
from workers.models.pretrained import Pretrained
from workers.models.tested_families import TESTED, TESTED_WITH_IMAGES
from workers.vision.cross import CrossVision
from workers.vision.families import vision_of

DIM_STEP = 16
"""Kernels take heads of a multiple of this; a cache of others is filled up with zeros."""

NOTHING: AbstractContextManager[None] = nullcontext()


class TransformersModel:
    """transformers' own code over packed tokens and a paged cache. See `forward.Model`."""

    def __init__(self, loaded: Pretrained, attention: registry.Backend) -> None:
        """Raises UnsupportedModel."""
        self.module = loaded.module
        notes = loaded.complete() + patch_attention(self.module)
        self.vision: Vision | None = vision_of(self.module)
        self.weight_bytes = loaded.weight_bytes
        self.quantization = loaded.quantization
        layers = layers_of(self.module)
        widest = max(max(layer.key_dim, layer.value_dim) for layer in layers)
        head_dim = -(-widest // DIM_STEP) * DIM_STEP
        # Of a layer with fewer key-value heads, the cache's others are filled up with zeros.
        n_kv_heads = max(layer.n_kv_heads for layer in layers)
        n_heads = n_kv_heads * max(layer.n_heads // layer.n_kv_heads for layer in layers)
        shape = AttentionShape(n_heads, n_kv_heads, head_dim, self.module.dtype)
        self.attention = registry.build(attention, shape)
        self.spec = loaded.spec(layers, shape)
        self.notes = notes + self.attention.notes
        kind = self.module.config.model_type
        if kind not in TESTED | TESTED_WITH_IMAGES:
            self.notes.append(
                f"{kind} is not among the families that tests hold to transformers (docs/models.md)"
            )
        self._packed = PackedForward(self.module)
        self._paged = PagedAttention(self.attention, [layer.window for layer in layers])

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """See `forward.Model`."""
        sees = self.vision
        tokens = batch.text(
            "transformers' code",
            inserts=sees is not None and not sees.cross,
            axes=sees is not None and sees.mrope,
            cross=sees is not None and sees.cross,
        )
        asked = tokens, batch.positions, batch.wanted, batch.inserted
        with self._paged.over(batch.attention), self._looking(batch):
            if batch.hidden:
                return ForwardOutput(*self._packed.with_hidden(*asked))
            return ForwardOutput(self._packed(*asked))

    def _looking(self, batch: ForwardBatch) -> AbstractContextManager[None]:
        """Let layers that attend to images know which."""
        return self.vision.over(batch.cross) if isinstance(self.vision, CrossVision) else NOTHING

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `forward.HeadedModel`."""
        scores: torch.Tensor = self.module.get_output_embeddings()(hidden.to(self.module.dtype))
        return scores

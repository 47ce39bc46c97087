"""What a loaded model says about itself: how each layer attends, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from workers.attention.cache import CacheGroup, CacheSpec
from workers.attention.kv_codes import UNSCALED, KvScales
from workers.attention.layer import AttentionSpec
from workers.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer that attends."""

    attention: AttentionSpec
    cache: CacheSpec
    scales: KvScales = UNSCALED
    """Of the codes of its keys and values."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the KV cache, the sampler and the router must know of a model, on this rank."""

    layers: tuple[LayerSpec, ...]
    vocab_size: int
    max_total_tokens: int
    """Longest text."""
    eos_token_ids: list[int]
    hidden_size: int
    """Of what the language-model head takes."""

    @property
    def cache_groups(self) -> list[CacheGroup]:
        """Which layers share blocks."""
        members: dict[CacheSpec, list[int]] = {}
        for number, layer in enumerate(self.layers):
            members.setdefault(layer.cache, []).append(number)
        return [
            CacheGroup(spec, tuple(layers), tuple(self.layers[at].scales for at in layers))
            for spec, layers in members.items()
        ]

    @property
    def cache_group(self) -> CacheGroup:
        """The group of all layers: one block table for each row serves no more than one.

        Raises UnsupportedModel for a model with several.
        """
        first, *others = self.cache_groups
        if others:
            kinds = "; ".join(
                f"{spec.n_kv_heads} heads of {spec.head_dim} in {spec.dtype}, {spec.kind}"
                for spec, _, _ in (first, *others)
            )
            raise UnsupportedModel(
                f"its layers keep keys and values of {1 + len(others)} kinds ({kinds}), and "
                "caches of one kind are served"
            )
        return first

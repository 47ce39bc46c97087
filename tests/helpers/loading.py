"""Models as tests load them, by what differs between them."""

from __future__ import annotations

from pathlib import Path

import torch

from tgi_async.wire.messages import ModelConfig
from workers.attention import registry
from workers.models import loading
from workers.models.loading import Loaded
from workers.models.pretrained import Pretrained
from workers.models.rope import Scaling
from workers.ranks import Ranks


def load(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str = "auto",
    ranks: Ranks | None = None,
    *,
    scaling: Scaling | None = None,
    max_total_tokens: int = 0,
    attention: registry.Backend | None = None,
    quantize: str = "",
    kv_cache_dtype: str = "",
    round_activations: bool = False,
) -> Loaded:
    """Load the model of a folder; see `loading.load`."""
    config = ModelConfig(
        str(path),
        implementation=implementation,
        max_total_tokens=max_total_tokens,
        rope_scaling=scaling.kind if scaling else "",
        rope_factor=scaling.factor if scaling else 1.0,
        quantize=quantize,
        kv_cache_dtype=kv_cache_dtype,
        round_activations=round_activations,
    )
    return loading.load(config, dtype, device, ranks, attention)


def pretrained(
    folder: Path,
    ranks: Ranks | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: str = "",
) -> Pretrained:
    """The model of a folder on a CPU, without its numbers yet."""
    return Pretrained(
        ModelConfig(str(folder), quantize=quantize), dtype, torch.device("cpu"), ranks
    )

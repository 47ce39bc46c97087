"""What a model folder says about itself, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, GenerationConfig


class Unsupported(Exception):
    """This model can not be served; the message says why and what would be nearest."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the KV cache and the router must know of a model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_total_tokens: int
    eos_token_ids: list[int]


def read_config(path: Path, trust_remote_code: bool) -> Any:
    """The config of a model that can be served. Raises Unsupported."""
    try:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        raise Unsupported(
            f"transformers {transformers.__version__} does not know this model: {error}"
        ) from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise Unsupported(f"{kind} is an encoder-decoder model; only decoder-only ones are served")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(
            "the weights are quantized, which is not served yet; use the unquantized model"
        )
    if getattr(config, "vision_config", None) is not None:
        raise Unsupported(f"{kind} takes images, not served yet; use a text-only model")
    kinds = set(getattr(config, "layer_types", None) or []) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        raise Unsupported(f"{kind} has layers of kind {', '.join(sorted(kinds))}, not served yet")
    return config


def shape_of(path: Path, config: Any) -> Shape:
    """Reads generation_config.json too, where there is one."""
    heads = config.num_attention_heads
    try:
        generation = GenerationConfig.from_pretrained(path, local_files_only=True)
        eos = generation.eos_token_id
    except OSError:
        eos = None
    eos = config.eos_token_id if eos is None else eos
    return Shape(
        n_layers=config.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        max_total_tokens=config.max_position_embeddings,
        eos_token_ids=[] if eos is None else [eos] if isinstance(eos, int) else list(eos),
    )

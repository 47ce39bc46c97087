"""What a model folder says about itself, before any weight is read."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from workers.errors import UnsupportedModel
from workers.models import rope
from workers.vision.families import FAMILIES, takes_images

ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose only state is keys and values, each seen by position alone."""

RECURRENT = frozenset(
    {
        "falcon_mamba",
        "mamba",
        "mamba2",
        "recurrent_gemma",
        "reformer",
        "rwkv",
        "xlstm",
        "zamba",
        "zaya",
    }
)
"""Families with a state besides keys and values that no `layer_types` tells of."""


class ConfigSizes(NamedTuple):
    """Sizes that a config names: of a family whose layers differ, what most of them have.

    A model that is loaded says itself what its layers have (`ModelSpec`).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


def read_config(path: Path, trust_remote_code: bool, scaling: rope.Scaling | None = None) -> Any:
    """The config of a model that can be served, with another rope scaling if there is one given.

    Raises UnsupportedModel, and ValueError for a scaling that is not for this model.
    """
    try:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"transformers {transformers.__version__} does not know this model: {error}"
        ) from error
    except StrictDataclassError as error:
        raise UnsupportedModel(f"its config.json has a value of the wrong kind: {error}") from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UnsupportedModel(
            f"{kind} is an encoder-decoder model, not served yet; use a decoder-only model"
        )
    if getattr(config, "audio_config", None) is not None:
        raise UnsupportedModel(f"{kind} takes sound, not served yet; use a text-only model")
    of_images = takes_images(config)
    if getattr(config, "vision_config", None) is not None and not of_images:
        raise UnsupportedModel(
            f"{kind} takes images in a way that is not served yet; use a text-only model, or one "
            f"of {', '.join(sorted(FAMILIES))}"
        )
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = of_images or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known and not (trust_remote_code and own):
        raise UnsupportedModel(
            f"{kind} is not a causal language model of transformers {transformers.__version__}; "
            "use a model for text generation"
        )
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or []) - ATTENTION
    if kinds or kind in RECURRENT:
        layers = f" (layers of kind {', '.join(sorted(map(str, kinds)))})" if kinds else ""
        raise UnsupportedModel(
            f"{kind} keeps a state of its own besides keys and values, or selects among "
            f"them{layers}, which is not served yet; use a model whose layers are all full or "
            "sliding attention"
        )
    if scaling is not None:
        rope.override(config, scaling)
    return config


def sizes_of(config: Any) -> ConfigSizes:
    """Raises UnsupportedModel for a config that does not name them."""
    text = copy(config.get_text_config())
    text.allow_global_per_layer_attribute_access = True
    heads = _first(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = _first(text, "hidden_size", "d_model", "n_embd")
    return ConfigSizes(
        n_layers=_first(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        n_heads=heads,
        n_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
    )


def _first(config: Any, *names: str) -> int:
    for name in names:
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UnsupportedModel(f"the config of {config.model_type} has none of {', '.join(names)}")

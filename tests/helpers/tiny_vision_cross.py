"""Small models whose layers attend to images, of random weights, always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.helpers.tiny_vision import fill
from tests.helpers.vision_tokens import IMAGE_SIZE, N_BYTES, PATCH_SIZE, VOCABULARY, token_id

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
SPECIALS: dict[str, int] = {
    "pad_token_id": token_id("<pad>"),
    "bos_token_id": token_id("<s>"),
    "eos_token_id": token_id("</s>"),
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
N_ADDITIONAL = 8
"""Tokens of Idefics whose embeddings are in a tensor of their own."""

KINDS: dict[str, dict[str, Any]] = {
    "idefics": {
        **SIZES,
        **SPECIALS,
        "vocab_size": VOCABULARY - N_ADDITIONAL,
        "additional_vocab_size": N_ADDITIONAL,
        "num_hidden_layers": 4,
        "cross_layer_interval": 2,
        "qk_layer_norms": True,
        "alpha_type": "vector",
        "use_resampler": True,
        "rope_parameters": ROPE,
        "vision_config": {
            "embed_dim": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        "perceiver_config": {
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "qk_layer_norms_perceiver": True,
        },
    },
    "mllama": {
        "text_config": {
            **SIZES,
            **SPECIALS,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": 5,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1, 3],
            "rope_parameters": ROPE,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        "image_token_index": token_id("<|image|>"),
    },
}
"""What configs of a `model_type` say."""
assert token_id("<image>") < VOCABULARY - N_ADDITIONAL
assert N_BYTES < VOCABULARY


def config_of(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **KINDS[kind] | more)


def save_vision(kind: str, folder: Path, **more: Any) -> Path:
    """Write the model of a kind into `folder`, with `more` in its config."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config_of(kind, **more), dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _fill(module, name, parameter)
    model.save_pretrained(folder)
    return folder


def _fill(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    """Make gates far from 0, so that images matter."""
    if "gate" in name or "alpha" in name:
        parameter.uniform_(0.5, 1.5)
    else:
        fill(module, name, parameter)

"""Small models that take images, of random weights: one of each family, always the same.

Their tokens and sizes are those of `vision_tokens`; weights are large enough for images to matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.helpers.vision_tokens import IMAGE_SIZE, PATCH_SIZE, VOCABULARY, token_id

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": token_id("<pad>"),
    "bos_token_id": token_id("<s>"),
    "eos_token_id": token_id("</s>"),
}
"""Of every text model."""
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
"""Of encoders like CLIP's and SigLIP's."""
CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
LLAMA = TEXT | {"model_type": "llama"}
IMAGE = {"image_token_id": token_id("<image>")}
MROPE = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
QWEN = {
    "image_token_id": token_id("<|image_pad|>"),
    "video_token_id": token_id("<|video_pad|>"),
    "vision_start_token_id": token_id("<|vision_start|>"),
    "vision_end_token_id": token_id("<|vision_end|>"),
}
QWEN_TOWER = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": PATCH_SIZE,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
SIGLIP_OF_GEMMA = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}

KINDS: dict[str, Mapping[str, Any]] = {
    "gemma3": {
        "text_config": TEXT
        | {
            "model_type": "gemma3_text",
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 20,
        },
        "vision_config": SIGLIP_OF_GEMMA,
        "mm_tokens_per_image": 4,
        "boi_token_index": token_id("<start_of_image>"),
        "eoi_token_index": token_id("<end_of_image>"),
        "image_token_index": token_id("<image_soft_token>"),
    },
    "idefics2": {
        "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
        "vision_config": TOWER | {"model_type": "idefics2_vision", "image_size": 56},
        "perceiver_config": {
            "hidden_size": 64,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
        **IMAGE,
    },
    "idefics3": {
        "text_config": LLAMA,
        "vision_config": TOWER | {"model_type": "idefics3_vision"},
        "scale_factor": 2,
        **IMAGE,
    },
    "llava": {
        "text_config": LLAMA,
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": 16,
        "image_token_index": token_id("<image>"),
    },
    "llava_next": {
        "text_config": LLAMA,
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
        "image_seq_length": 16,
        "image_token_index": token_id("<image>"),
    },
    "paligemma": {
        "text_config": TEXT | {"model_type": "gemma", "num_image_tokens": 16},
        "vision_config": SIGLIP_OF_GEMMA | {"projection_dim": 64},
        "projection_dim": 64,
        "image_token_index": token_id("<image>"),
    },
    "qwen2_5_vl": {
        "text_config": TEXT | {"model_type": "qwen2_5_vl_text", "rope_parameters": MROPE},
        "vision_config": QWEN_TOWER
        | {
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "window_size": 28,
            "fullatt_block_indexes": [1],
        },
        **QWEN,
    },
    "qwen2_vl": {
        "text_config": TEXT | {"model_type": "qwen2_vl_text", "rope_parameters": MROPE},
        "vision_config": QWEN_TOWER | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        **QWEN,
    },
    "smolvlm": {
        "text_config": LLAMA,
        "vision_config": TOWER | {"model_type": "smolvlm_vision"},
        "scale_factor": 2,
        **IMAGE,
    },
}
"""What configs of a `model_type` say."""


def config_of(kind: str) -> Any:
    return AutoConfig.for_model(kind, **KINDS[kind])


def save_vision(kind: str, folder: Path, *, old_names: bool = True) -> Path:
    """Write the model of a kind into `folder`, its tensors named as checkpoints on the Hub have
    them, or as transformers has them now."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config_of(kind), dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _fill(module, name, parameter)
    model.save_pretrained(folder, save_original_format=old_names)
    return folder


def _fill(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    if "Norm" in type(module).__name__ and name == "weight":
        parameter.uniform_(0.5, 1.5)
    elif isinstance(module, torch.nn.Embedding):
        parameter.normal_(0.0, 1.6 * parameter.shape[-1] ** -0.5)
    elif parameter.dim() > 1:
        parameter.normal_(0.0, 1.6 * parameter[0].numel() ** -0.5)
    else:
        parameter.normal_(0.0, 0.3)

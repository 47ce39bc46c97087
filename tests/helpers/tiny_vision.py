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

PIXTRAL = TOWER | {"model_type": "pixtral", "image_size": 84, "head_dim": 16}
COHERE = TEXT | {
    "model_type": "cohere2",
    "logit_scale": 0.7,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
INTERN = TOWER | {
    "model_type": "internvl_vision",
    "image_size": [IMAGE_SIZE, IMAGE_SIZE],
    "patch_size": [PATCH_SIZE, PATCH_SIZE],
    "layer_scale_init_value": 1.0,
}
QWEN2 = TEXT | {"model_type": "qwen2"}
QWEN3 = TEXT | {"model_type": "qwen3"}
GRID_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": PATCH_SIZE,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
GLM_TOKENS = {
    "image_token_id": token_id("<|image_pad|>"),
    "video_token_id": token_id("<|video_pad|>"),
    "image_start_token_id": token_id("<|vision_start|>"),
    "image_end_token_id": token_id("<|vision_end|>"),
    "video_start_token_id": token_id("<global-img>"),
    "video_end_token_id": token_id("<|image|>"),
}
GLM_ROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    },
}

KINDS: dict[str, Mapping[str, Any]] = {
    "aria": {
        "text_config": TEXT | {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2},
        "vision_config": TOWER | {"model_type": "idefics3_vision"},
        "projector_patch_to_query_dict": {16: 5},
        "image_token_index": token_id("<image>"),
    },
    "aya_vision": {
        "text_config": COHERE,
        "vision_config": SIGLIP,
        "image_token_index": token_id("<image>"),
    },
    "cohere2_vision": {
        "text_config": COHERE,
        "vision_config": SIGLIP,
        "alignment_intermediate_size": 48,
        **IMAGE,
    },
    "deepseek_vl": {"text_config": LLAMA, "vision_config": SIGLIP, **IMAGE},
    "exaone4_5": {
        "text_config": TEXT
        | {
            "model_type": "exaone4",
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": GRID_TOWER
        | {"num_key_value_heads": 1, "window_size": 28, "fullatt_block_indexes": [1]},
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
    },
    "glm4v": {
        "text_config": TEXT | GLM_ROPE | {"model_type": "glm4v_text"},
        "vision_config": GRID_TOWER | {"image_size": 56},
        **GLM_TOKENS,
    },
    "glm46v": {
        "text_config": TEXT | GLM_ROPE | {"model_type": "glm4v_text"},
        "vision_config": GRID_TOWER | {"image_size": 56, "model_type": "glm4v_vision"},
        **GLM_TOKENS,
    },
    "glm4v_moe": {
        "text_config": TEXT
        | GLM_ROPE
        | {
            "model_type": "glm4v_moe_text",
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        },
        "vision_config": GRID_TOWER | {"image_size": 56},
        **GLM_TOKENS,
    },
    "glm_ocr": {
        "text_config": TEXT | GLM_ROPE | {"model_type": "glm_ocr_text"},
        "vision_config": GRID_TOWER | {"image_size": 56},
        **GLM_TOKENS,
    },
    "hyperclovax_vision_v2": {
        "text_config": TEXT | {"model_type": "hyperclovax"},
        "vision_config": GRID_TOWER
        | {"model_type": "qwen2_5_vl_vision", "window_size": 28, "fullatt_block_indexes": [1]},
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
    },
    "kimi_k25": {
        "text_config": TEXT
        | {
            "model_type": "deepseek_v3",
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 24,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": PATCH_SIZE,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        "projection_hidden_size": 32,
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    },
    "llava_next_video": {
        "text_config": LLAMA,
        "vision_config": CLIP,
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
        "image_token_index": token_id("<image>"),
        "video_token_index": token_id("<|video_pad|>"),
    },
    "got_ocr2": {
        "text_config": QWEN2,
        "vision_config": {
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 7,
            "window_size": 3,
            "global_attn_indexes": [1],
            "mlp_dim": 48,
        },
        "image_token_index": token_id("<image>"),
    },
    "internvl": {"text_config": QWEN2, "vision_config": INTERN, **IMAGE},
    "lighton_ocr": {"text_config": QWEN3, "vision_config": PIXTRAL, **IMAGE},
    "llava, granite": {
        "text_config": TEXT | {"model_type": "granite", "embedding_multiplier": 0.6},
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_token_index": token_id("<image>"),
    },
    "llava, pixtral": {
        "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
        "vision_config": PIXTRAL,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": token_id("<image>"),
    },
    "llava_onevision": {
        "text_config": QWEN2,
        "vision_config": SIGLIP,
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
        "image_token_index": token_id("<image>"),
        "video_token_index": token_id("<|video_pad|>"),
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
        "vision_config": PIXTRAL,
        "image_token_index": token_id("<image>"),
    },
    "paddleocr_vl": {
        "text_config": TEXT | {"model_type": "paddleocr_vl_text", "rope_parameters": MROPE},
        "vision_config": TOWER | {"spatial_merge_size": 2, "image_size": 56},
        **QWEN,
    },
    "qianfan_ocr": {
        "text_config": QWEN3,
        "vision_config": INTERN | {"model_type": "qianfan_ocr_vision", "drop_path_rate": 0.0},
        **IMAGE,
    },
    "video_llama_3": {
        "text_config": QWEN2,
        "vision_config": {
            name: TOWER[name]
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "patch_size",
            )
        },
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
    },
    "vipllava": {
        "text_config": LLAMA,
        "vision_config": CLIP,
        "vision_feature_layer": [-2, -3, 1],
        "image_token_index": token_id("<image>"),
    },
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
    "qwen3_vl": {
        "text_config": TEXT | {"model_type": "qwen3_vl_text", "rope_parameters": MROPE},
        "vision_config": GRID_TOWER
        | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]},
        **QWEN,
    },
    "qwen3_vl_moe": {
        "text_config": TEXT
        | {
            "model_type": "qwen3_vl_moe_text",
            "rope_parameters": MROPE,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "vision_config": GRID_TOWER
        | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]},
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
    return AutoConfig.for_model(kind.partition(",")[0], **KINDS[kind])


def save_vision(kind: str, folder: Path, *, old_names: bool = True) -> Path:
    """Write the model of a kind into `folder`, its tensors named as checkpoints on the Hub have
    them, or as transformers has them now."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config_of(kind), dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fill(module, name, parameter)
    model.save_pretrained(folder, save_original_format=old_names)
    return folder


def fill(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    """Make the numbers of a parameter, as all small models of images have them."""
    if "Norm" in type(module).__name__ and name == "weight":
        parameter.uniform_(0.5, 1.5)
    elif isinstance(module, torch.nn.Embedding):
        parameter.normal_(0.0, 1.6 * parameter.shape[-1] ** -0.5)
    elif parameter.dim() > 1:
        parameter.normal_(0.0, 1.6 * parameter[0].numel() ** -0.5)
    else:
        parameter.normal_(0.0, 0.3)

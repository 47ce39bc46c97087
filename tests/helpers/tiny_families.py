"""Small models of random weights, of the families that the fused decoder runs.

Weights are large enough for attention to matter, windows shorter than the prompts, norms not 1.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = ["sliding_attention", "full_attention"] * 2
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 32,
            "layer_types": _SLIDING,
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 20,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32,
            "layer_types": _SLIDING,
            "sliding_window": 9,
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 3.0,
        },
    ),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
            "embedding_multiplier": 3.0,
            "logits_scaling": 1.7,
        },
    ),
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, gelu, one head": ("llama", {"hidden_act": "gelu", "num_key_value_heads": 1}),
    "llama, heads of 48": ("llama", {"head_dim": 48, "tie_word_embeddings": True}),
    "llama3 ropes": ("llama", {"rope_parameters": {"rope_theta": 500.0, **_LLAMA3}}),
    "linear ropes": (
        "llama",
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0}},
    ),
    "yarn ropes": ("qwen2", {"rope_parameters": {"rope_theta": 500.0, **_YARN}}),
    "ministral": ("ministral", {"layer_types": _SLIDING, "sliding_window": 9, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": 9}),
    "phi3": ("phi3", {}),
    "phi3, partial": (
        "phi3",
        {"head_dim": 32, "sliding_window": 9, "hidden_size": 128, "partial_rotary_factor": 0.75},
    ),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "seed_oss": ("seed_oss", {"head_dim": 32, "attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
}


def smaller(variant: str) -> dict[str, Any]:
    """What makes a variant one of two layers, and of short windows."""
    settings = VARIANTS[variant][1]
    changed: dict[str, Any] = {"num_hidden_layers": 2}
    if "layer_types" in settings:
        changed["layer_types"] = settings["layer_types"][:2]
    if "sliding_window" in settings:
        changed["sliding_window"] = 4
    if "max_window_layers" in settings:
        changed["max_window_layers"] = 1
    if "no_rope_layers" in settings:
        changed["no_rope_layers"] = settings["no_rope_layers"][1:3]
    return changed


def tiny(variant: str, dtype: torch.dtype = torch.float32, **other: Any) -> Any:
    """A model of transformers, always the same one of a variant, and of what is other about it."""
    kind, settings = VARIANTS[variant]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(_SIZES | settings | other))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() > 1:
                parameter.normal_(0.0, 1.6 * parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(0.0, 0.3)
    return model.to(dtype).eval().requires_grad_(False)

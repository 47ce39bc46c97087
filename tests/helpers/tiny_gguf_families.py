"""Small models of transformers, and each as a GGUF file as llama.cpp's converter would write it.

Tensors get the names that the package gguf has for them; weights are what bfloat16 can hold, so
that nothing is lost on the way there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.gguf_blocks import random_blocks
from tests.helpers.tiny_gguf import TOKENS, add_tokenizer

LAYERS = 7
"""One more than gemma3's period of sliding layers."""

_SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.125, 1.25, 1.5, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 9.0, 17.0],
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_TIED: dict[str, Any] = {"tie_word_embeddings": True}

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {"rope_parameters": {"rope_theta": 500.0}}),
    "llama, biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True, **_TIED}),
    "llama, llama3 ropes": (
        "llama",
        "llama",
        {"rope_parameters": _LLAMA3, "max_position_embeddings": 65536},
    ),
    "llama, linear ropes": (
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "smollm3": ("smollm3", "smollm3", _TIED),
    "qwen2": ("qwen2", "qwen2", {"rope_parameters": {"rope_theta": 1e6}}),
    "qwen2, yarn": (
        "qwen2",
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500.0,
            }
        },
    ),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 32, **_TIED}),
    "qwen3moe": (
        "qwen3moe",
        "qwen3_moe",
        {
            "head_dim": 32,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
    "phi3": ("phi3", "phi3", {"sliding_window": 9}),
    "phi3, long, partial": (
        "phi3",
        "phi3",
        {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "rope_parameters": _LONG,
        },
    ),
    "gemma2": (
        "gemma2",
        "gemma2",
        {
            "head_dim": 32,
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 32,
            **_TIED,
        },
    ),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 32,
            "sliding_window": 9,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            **_TIED,
        },
    ),
}
"""llama.cpp's name of the architecture, transformers', and settings."""


def tiny_model(variant: str, **changed: Any) -> Any:
    """The model of transformers, in float32, always the same one of a variant."""
    _, kind, settings = VARIANTS[variant]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(_SIZES | settings | changed))
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() > 1:
                parameter.normal_(0.0, 1.6 * parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(0.0, 0.3)
            parameter.copy_(parameter.bfloat16())
    return model.eval().requires_grad_(False)


def write_family(
    path: Path, variant: str, blocks: Callable[[str], str] | None = None, **changed: Any
) -> Any:
    """Write the model of `variant` to `path`, and return it. With `blocks`, matrices are any in the
    type of block that it says of llama.cpp's names, and not the model's."""
    model = tiny_model(variant, **changed)
    architecture = VARIANTS[variant][0]
    writer = gguf.GGUFWriter(path, architecture)
    _add_settings(writer, architecture, model.config)
    add_tokenizer(writer)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, LAYERS)
    for name, tensor in _as_files_have_them(model):
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        if blocks is not None and tensor.dim() > 1 and "ffn_gate_inp" not in theirs:
            *before, n, k = tensor.shape
            kind = gguf.GGMLQuantizationType[blocks(theirs)]
            made = random_blocks(kind.name, math.prod(before) * n, k, 1.6 * k**-0.5)
            writer.add_tensor(theirs, made.reshape(*before, n, -1), raw_dtype=kind)
            continue
        writer.add_tensor(theirs, _as_llama_cpp(architecture, model.config, name, tensor).numpy())
    _add_rope_tensors(writer, model.config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _as_files_have_them(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model; those of its experts apart, and of all experts together."""
    for name, tensor in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for leaf, part in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                yield name.replace("gate_up_proj", f"{leaf}_proj.weight"), part.contiguous()
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", tensor
        else:
            yield name, tensor


def _as_llama_cpp(architecture: str, config: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if architecture in ("llama", "smollm3") and part in heads:
        halves = tensor.reshape(heads[part], 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
    return tensor


def _add_settings(writer: Any, architecture: str, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_rope_tensors(writer: Any, config: Any) -> None:
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            factors = torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors.numpy())
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config).numpy())


def _llama3_factors(config: Any) -> torch.Tensor:
    """By what transformers divides each frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
    factors: torch.Tensor = config.rope_parameters["rope_theta"] ** -exponents / scaled
    return factors

"""Small models of random weights, one or more of every family that is served.

Weights are large enough for attention to matter, windows and chunks shorter than the prompts,
norms not 1, no two experts alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

VOCABULARY = 97
SIZES: dict[str, Any] = {
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
    "sliding_window": 9,
    "attention_chunk_size": 9,
    # experts
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_only_layers": [1],
    "moe_layer_start_index": 1,
    # attention through a smaller space
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    # other names for the same
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 256,
    "n_inner": 96,
}
"""Given to a config as far as it has them."""

HALF = ["sliding_attention", "full_attention"] * 2
CHUNKED = ["chunked_attention", "full_attention"] * 2
D32 = {"head_dim": 32}
MLA = {"num_key_value_heads": 4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _longrope(original: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
        "original_max_position_embeddings": original,
    }


class Case(NamedTuple):
    """A model to be made."""

    kind: str
    """`model_type`"""
    settings: Mapping[str, Any] = MappingProxyType({})
    max_total_tokens: int = 0
    """Asked for, where the length of texts has a say in rotary embeddings."""
    reference: str = "eager"
    """transformers' attention that it is held to."""


CASES: dict[str, Case] = {
    "afmoe": Case("afmoe", D32),
    "apertus": Case("apertus"),
    "arcee": Case("arcee"),
    "aria_text": Case("aria_text", {"moe_num_experts": 6, "moe_topk": 2}),
    "axk1": Case("axk1", MLA),
    "beam": Case("beam", D32),
    "biogpt": Case("biogpt"),
    "bitnet": Case("bitnet"),
    "bloom": Case("bloom"),
    "bloom, 6 heads": Case("bloom", {"n_head": 6, "hidden_size": 96}),
    "codegen": Case("codegen", {"rotary_dim": 8}),
    "cohere": Case("cohere", {"logit_scale": 1.0}),
    "cohere2": Case("cohere2", {"logit_scale": 1.0, "layer_types": HALF}),
    "cohere2_moe": Case("cohere2_moe", {"logit_scale": 1.0, "layer_types": HALF, **D32}),
    "ctrl": Case("ctrl"),
    "cwm": Case("cwm", {"layer_types": HALF, **D32}),
    "dbrx": Case(
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 4,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 500.0, "clip_qkv": 8.0},
            "ffn_config": {
                "hidden_size": 64,
                "ffn_hidden_size": 48,
                "moe_num_experts": 6,
                "moe_top_k": 2,
            },
        },
    ),
    "deepseek_v2": Case("deepseek_v2", MLA),
    "deepseek_v3": Case("deepseek_v3", MLA),
    "deepseek_v3, yarn": Case("deepseek_v3", {**MLA, "rope_parameters": {**YARN, "mscale": 1.0}}),
    "dots1": Case("dots1", {"n_shared_experts": 1}),
    "ernie4_5": Case("ernie4_5", D32),
    "ernie4_5_moe": Case("ernie4_5_moe"),
    "exaone4": Case("exaone4", {"layer_types": HALF}),
    "exaone_moe": Case("exaone_moe", {"layer_types": HALF}),
    # transformers' eager code for it adds ALiBi twice.
    "falcon, alibi": Case("falcon", {"alibi": True, "multi_query": False}, 0, "sdpa"),
    "falcon, multi-query": Case("falcon"),
    "falcon, new decoder": Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "flex_olmo": Case("flex_olmo"),
    "gemma": Case("gemma", D32),
    "gemma2": Case(
        "gemma2",
        {"layer_types": HALF, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20, **D32},
    ),
    "gemma3_text": Case("gemma3_text", {"layer_types": HALF, "query_pre_attn_scalar": 20, **D32}),
    "gemma3n_text": Case(
        "gemma3n_text",
        {
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": HALF,
            **D32,
        },
    ),
    "gemma4_text": Case(
        "gemma4_text",
        {
            "layer_types": HALF,
            "global_head_dim": 64,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            **D32,
        },
    ),
    "glm": Case("glm", D32),
    "glm4": Case("glm4", D32),
    "glm4_moe": Case("glm4_moe"),
    "glm4_moe_lite": Case("glm4_moe_lite", MLA),
    "gpt2": Case("gpt2"),
    "gpt_bigcode": Case("gpt_bigcode"),
    "gpt_neo": Case(
        "gpt_neo",
        {
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 9,
        },
    ),
    "gpt_neox": Case("gpt_neox"),
    "gpt_neox_japanese": Case("gpt_neox_japanese"),
    "gpt_oss": Case("gpt_oss", {"head_dim": 32, "layer_types": HALF}),
    "gptj": Case("gptj", {"rotary_dim": 8}),
    "granite": Case("granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.7}),
    "granite_swa": Case("granite_swa", {"attention_multiplier": 0.3, "layer_types": HALF}),
    "granitemoe": Case("granitemoe", {"attention_multiplier": 0.3}),
    "granitemoe_swa": Case("granitemoe_swa", {"attention_multiplier": 0.3, "layer_types": HALF}),
    "granitemoeshared": Case(
        "granitemoeshared", {"attention_multiplier": 0.3, "shared_intermediate_size": 48}
    ),
    "helium": Case("helium", {"head_dim": 16}),
    "hunyuan_v1_dense": Case("hunyuan_v1_dense", {"head_dim": 16}),
    "hunyuan_v1_moe": Case("hunyuan_v1_moe", {"head_dim": 16, "moe_topk": 2}),
    "hy_v3": Case("hy_v3", D32),
    "hyperclovax": Case("hyperclovax"),
    "jais2": Case("jais2"),
    "jetmoe": Case("jetmoe", {"kv_channels": 16}),
    "kolibri1": Case("kolibri1", {"layer_types": HALF, **D32}),
    "laguna": Case("laguna", D32),
    "llama": Case("llama"),
    "llama, heads of 24": Case("llama", {"head_dim": 24}),
    "llama, linear": Case(
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}
    ),
    "llama, dynamic": Case(
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}}
    ),
    "llama, llama3": Case("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": Case("llama", {"rope_parameters": YARN}),
    "llama4_text": Case("llama4_text", {"layer_types": CHUNKED, "num_key_value_heads": 2, **D32}),
    "longcat_flash": Case(
        "longcat_flash",
        {
            **MLA,
            "num_layers": 4,
            "head_dim": 16,
            "ffn_hidden_size": 64,
            "expert_ffn_hidden_size": 32,
        },
    ),
    "mellum": Case("mellum", {"layer_types": HALF, **D32}),
    "mimo_v2_flash": Case("mimo_v2_flash", {"head_dim": 32}),
    "minicpm3": Case("minicpm3", MLA),
    "minimax_m2": Case("minimax_m2", D32),
    "ministral": Case("ministral", {"head_dim": 16, "layer_types": HALF}),
    "ministral3": Case("ministral3", D32),
    "mistral": Case("mistral"),
    "mixtral": Case("mixtral"),
    "modernbert-decoder": Case("modernbert-decoder", {"local_attention": 18}),
    "mpt": Case("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 256}),
    "nanochat": Case("nanochat"),
    "nemotron": Case("nemotron"),
    "olmo": Case("olmo"),
    "olmo2": Case("olmo2"),
    "olmo3": Case("olmo3", {"layer_types": HALF}),
    "olmoe": Case("olmoe"),
    "opt": Case("opt", {"word_embed_proj_dim": 64, "ffn_dim": 96}),
    "persimmon": Case("persimmon"),
    "phi": Case("phi"),
    "phi3": Case("phi3"),
    "phi3, longrope, short texts": Case(
        "phi3", {"rope_parameters": _longrope(128), "original_max_position_embeddings": 128}
    ),
    "phi3, longrope, long texts": Case(
        "phi3", {"rope_parameters": _longrope(4), "original_max_position_embeddings": 4}, 200
    ),
    "phimoe": Case("phimoe"),
    "phimoe, longrope, long texts": Case(
        "phimoe",
        {"rope_parameters": {**_longrope(4), "short_mscale": 1.1, "long_mscale": 1.3}},
        200,
    ),
    "qwen2": Case("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen2_moe": Case("qwen2_moe"),
    "qwen3": Case("qwen3", D32),
    "qwen3_moe": Case("qwen3_moe"),
    "seed_oss": Case("seed_oss", D32),
    "smollm3": Case("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
    "solar_open": Case("solar_open", D32),
    "stablelm": Case("stablelm", {"qk_layernorm": True}),
    "starcoder2": Case("starcoder2"),
    "vaultgemma": Case("vaultgemma", {"layer_types": HALF, "attn_logit_softcapping": 2.0, **D32}),
    "xglm": Case("xglm", {"d_model": 64, "num_layers": 4, "attention_heads": 4, "ffn_dim": 96}),
    # transformers empties the row of the padding, which is in the output layer too.
    "youtu": Case("youtu", {**MLA, "pad_token_id": None}),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "an encoder-decoder model": ("t5", {"d_model": 32, "num_layers": 1, "num_heads": 2}),
    "a state-space model": ("mamba", {"num_hidden_layers": 1}),
    "a model with recurrent layers": ("recurrent_gemma", {"num_hidden_layers": 1}),
    "a model with linear attention": ("qwen3_next", {"num_hidden_layers": 4}),
    "a model with convolutions": (
        "lfm2",
        {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    ),
    "a model that selects keys": ("deepseek_v32", {"num_hidden_layers": 1}),
    "a model of images": ("ovis2", {}),
    "a model for classification": ("vit", {}),
}
"""What is refused by its config, before any weight is read."""


def config_of(case: Case) -> Any:
    known = vars(AutoConfig.for_model(case.kind))
    names = AutoConfig.for_model(case.kind).attribute_map
    sizes = {k: v for k, v in SIZES.items() if k in known or k in names}
    return AutoConfig.for_model(case.kind, **(sizes | dict(case.settings)))


def save(case: Case, folder: Path) -> Path:
    """Write a case's model into `folder`, always the same one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_of(case), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    n_inputs = parameter.shape[0 if isinstance(module, Conv1D) else -1]
                    parameter.normal_(0.0, 1.6 * n_inputs**-0.5)
                elif "Norm" in type(module).__name__ and name == "weight":
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder

"""The architectures that are read from GGUF files, as data.

llama.cpp has names of its own for tensors and settings, and its converter changes some values on
the way: what is written here takes a file back to the model of transformers that it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

EACH = "*"
"""In transformers' name of a tensor, where llama.cpp has one for all experts together."""

_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"mlp.experts.{EACH}.gate_proj",
    "ffn_up_exps": f"mlp.experts.{EACH}.up_proj",
    "ffn_down_exps": f"mlp.experts.{EACH}.down_proj",
}
_ALONE = ("ffn_gate", "ffn_up", "ffn_down")

_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_SPLIT = ("attn_q", "attn_k", "attn_v", "ffn_gate")

_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a file of one `general.architecture` becomes a model of transformers."""

    model_type: str
    class_name: str
    block: Mapping[str, str] = field(default_factory=lambda: _BLOCK)
    """The tensors of a layer: llama.cpp's name, and transformers' below `model.layers.N`."""
    interleaved: bool = False
    """llama.cpp rotates neighbouring pairs of a head where transformers rotates its two halves; the
    rows of the query and key projections were permuted for it."""
    norm_offset: float = 0.0
    """What was added to the weights of norms."""
    rope_tensors: frozenset[str] = frozenset()
    """Tensors that hold settings of the rotary embedding."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """A setting of the config that says whether there is a bias, and a tensor that has it then."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the config, and their keys below the architecture's name."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """Settings of the config that llama.cpp has in its code."""
    scaled_by_width: int | None = None
    """The number of layers of the one size whose attention is scaled by hidden size / heads, where
    the others' is by the size of a head: no key says so, llama.cpp knows it as well."""
    partial_rotary: bool = False
    """The rotary embedding may cover a part of each head."""


_BIASES = {"attention_bias": "attn_q"}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        interleaved=True,
        rope_tensors=frozenset({"rope_freqs"}),
        biases=_BIASES | {"mlp_bias": "ffn_up"},
    ),
    "smollm3": Architecture(
        "smollm3", "SmolLM3ForCausalLM", interleaved=True, biases=_BIASES | {"mlp_bias": "ffn_up"}
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", block=_BLOCK | _HEAD_NORMS, biases=_BIASES),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        block={ours: theirs for ours, theirs in _BLOCK.items() if ours not in _ALONE}
        | _HEAD_NORMS
        | _EXPERTS,
        biases=_BIASES,
        settings={
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length",
        },
        constants={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        block={ours: theirs for ours, theirs in (_BLOCK | _FUSED).items() if ours not in _SPLIT},
        rope_tensors=frozenset({"rope_factors_long", "rope_factors_short"}),
        settings={"sliding_window": "attention.sliding_window"},
        partial_rotary=True,
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        block=_BLOCK | _FOUR_NORMS,
        norm_offset=1.0,
        settings={
            "sliding_window": "attention.sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        scaled_by_width=46,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        block=_BLOCK | _FOUR_NORMS | _HEAD_NORMS,
        norm_offset=1.0,
        settings={
            "sliding_window": "attention.sliding_window",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        scaled_by_width=62,
    ),
}
"""Mistral's and most others' models of llama's form say that they are "llama"."""

REFUSED = {
    "expert_count": "a mixture of experts",
    "attention.sliding_window": "a sliding window",
    "attention.sliding_window_pattern": "an order of sliding windows of its own",
    "attention.scale": "an attention scale of its own",
    "attention.temperature_scale": "a temperature of attention",
    "attn_logit_softcapping": "a soft cap of attention",
    "final_logit_softcapping": "a soft cap of logits",
    "embedding_scale": "scaled embeddings",
    "residual_scale": "scaled residuals",
    "logit_scale": "scaled logits",
    "rope.scaling.yarn_log_multiplier": "a yarn rotary embedding of its own kind",
}
"""Keys below the architecture's name which would change the model's arithmetic, unless they are
among its `settings`."""

# fmt: off
QUANTIZATIONS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K",
    "Q2_K", "IQ4_XS", "IQ4_NL", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
    "TQ2_0", "TQ1_0", "MXFP4",
)
# fmt: on
"""Those that the package gguf can undo, of the ones that need nothing besides the tensor."""

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Those that `workers.quantization.gguf` multiplies as they are."""

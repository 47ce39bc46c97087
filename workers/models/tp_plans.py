"""How the modules of a model are spread over ranks: transformers' plans, and ours, as data.

A plan maps the path of a module or parameter (`*` is a layer's number) to a style:

- `colwise`: each rank has some of the outputs; `rowwise`: some of the inputs, and results are
  summed. Between them lie the heads of attention or the columns of an MLP.
- `packed_colwise`, `packed_rowwise`: as these, of two parts side by side (gate and up).
- `interleaved`: as `packed_rowwise`, of two parts that take turns.
- `once`: a bias that rank 0 alone adds.
- `heads`: queries, keys and values of some heads, side by side.
- `moe_tp_experts`: the module's results are summed.
- Those of WHOLE: every rank has all of it.

What a plan does not name is whole too. Embedding and head are always spread over the vocabulary.
"""

from __future__ import annotations

from typing import Any

from workers.errors import UnsupportedModel

WHOLE = frozenset(
    {
        "embedding_rowwise",  # of the input embedding, which is spread over the vocabulary anyway
        "local_params",
        "mla_kv_a_proj",
        "replicate",
        "replicated_with_grad_allreduce",
    }
)
GATHERED = frozenset({"colwise_gather_output", "colwise_rep", "rowwise_split_input", "rowwise_rep"})
"""transformers keeps parts of the weight and puts results together; here each rank has it all."""
SPREAD = frozenset(
    {
        "colwise",
        "heads",
        "interleaved",
        "moe_tp_experts",
        "once",
        "packed_colwise",
        "packed_rowwise",
        "rowwise",
    }
)

_SELF_ATTENTION = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}
_GATED_MLP = {
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
_PACKED_MLP = {
    "layers.*.mlp.gate_up_proj": "packed_colwise",
    "layers.*.mlp.down_proj": "rowwise",
}

_MLP_ALONE = {"dense_h_to_4h": "colwise", "dense_4h_to_h": "rowwise"}
"""Of families whose attention every rank has whole: its heads lie side by side in ways of its own.
"""
_BIOGPT = {
    **{f"layers.*.self_attn.{x}_proj": "colwise" for x in "qkv"},
    "layers.*.self_attn.out_proj": "rowwise",
    "layers.*.fc1": "colwise",
    "layers.*.fc2": "rowwise",
}

OURS: dict[str, dict[str, str]] = {
    "biogpt": _BIOGPT,
    "bloom": {f"h.*.mlp.{name}": style for name, style in _MLP_ALONE.items()},
    "codegen": {"h.*.mlp.fc_in": "colwise", "h.*.mlp.fc_out": "rowwise"},
    "falcon": {f"h.*.mlp.{name}": style for name, style in _MLP_ALONE.items()},
    "glm": _PACKED_MLP,
    "glm4": _PACKED_MLP,
    "gpt_bigcode": {"h.*.mlp.c_fc": "colwise", "h.*.mlp.c_proj": "rowwise"},
    "gpt_neo": {
        **{f"h.*.attn.attention.{x}_proj": "colwise" for x in "qkv"},
        "h.*.attn.attention.out_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    "gpt_neox_japanese": {f"layers.*.mlp.{name}": x for name, x in _MLP_ALONE.items()},
    "gptj": {
        **{f"h.*.attn.{x}_proj": "colwise" for x in "qkv"},
        "h.*.attn.out_proj": "rowwise",
        "h.*.mlp.fc_in": "colwise",
        "h.*.mlp.fc_out": "rowwise",
    },
    "gpt_oss": _SELF_ATTENTION
    | {
        "layers.*.self_attn.sinks": "colwise",
        "layers.*.mlp.experts.gate_up_proj": "interleaved",
        "layers.*.mlp.experts.gate_up_proj_bias": "interleaved",
        "layers.*.mlp.experts.down_proj": "colwise",  # [experts, columns, hidden]
        "layers.*.mlp.experts.down_proj_bias": "once",
        "layers.*.mlp.experts": "moe_tp_experts",
    },
    "granitemoe": _SELF_ATTENTION,
    "granitemoeshared": _SELF_ATTENTION,
    "hunyuan_v1_dense": _SELF_ATTENTION | _GATED_MLP,
    "mpt": {"blocks.*.ffn.up_proj": "colwise", "blocks.*.ffn.down_proj": "rowwise"},
    "opt": {f"decoder.{name}": style for name, style in _BIOGPT.items()},
    "persimmon": {f"layers.*.mlp.{name}": style for name, style in _MLP_ALONE.items()},
    "phi3": _PACKED_MLP
    | {"layers.*.self_attn.qkv_proj": "heads", "layers.*.self_attn.o_proj": "rowwise"},
    "phimoe": _SELF_ATTENTION,
    "qwen3_vl_text": _SELF_ATTENTION | _GATED_MLP,
    "stablelm": _SELF_ATTENTION | _GATED_MLP,
    "xglm": _BIOGPT,
}
"""By model type: in place of what transformers' plan says of the same modules, or beside it."""


def plan_of(model: Any) -> dict[str, str]:
    """The plan of a model in transformers. Raises UnsupportedModel where there is none."""
    config = model.config.get_text_config()
    theirs = getattr(config, "base_model_tp_plan", None) or {}
    plan: dict[str, str] = {**theirs, **OURS.get(config.model_type, {})}
    if not plan:
        raise UnsupportedModel(
            f"how {config.model_type} could be spread over several ranks is not known; serve it "
            "with --num-shard 1"
        )
    strange = sorted(set(plan.values()) - WHOLE - GATHERED - SPREAD)
    if strange:
        raise UnsupportedModel(
            f"the plan to spread {config.model_type} over ranks has parts that are not built "
            f"({', '.join(strange)}); serve it with --num-shard 1"
        )
    return plan

"""Families whose attention in transformers does not go through AttentionInterface.

Each of their attention modules gets, as a method of the one module, what it does between its
projections, through AttentionInterface. The rest of a family's code stays transformers' own; it is
imported where a model has made it come anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.attention.paged import NAME


class _Attends:
    """Calls the attention of a model's config for one of its modules."""

    def __init__(self, model: Any, module: nn.Module, scale: float, **how: Any) -> None:
        self._config, self._module, self._scale, self._how = model.config, module, scale, how

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Query [1, n_heads, n_tokens, head_dim], key and value [1, n_kv_heads, n_tokens, head_dim]
        -> [1, n_tokens, n_heads, head_dim]."""
        attention = ALL_ATTENTION_FUNCTIONS[self._config._attn_implementation]
        mixed: torch.Tensor = attention(
            self._module, query, key, value, None, scaling=self._scale, **self._how
        )[0]
        return mixed


def built_with(kind: str) -> str:
    """`attn_implementation` to build a model of this `model_type` with."""
    return "eager" if kind in PATCHES else NAME


def patch_attention(model: Any) -> list[str]:
    """Make the attention of a model go through AttentionInterface where it does not, and say what
    is different for it. Nothing happens to other models."""
    kind = model.config.model_type
    if kind not in PATCHES:
        return []
    model.config._attn_implementation = NAME
    name, patch = PATCHES[kind]
    for module in model.modules():
        if type(module).__name__ == name:
            patch(model, module)
    if kind == "falcon" and model.config.alibi:
        return [
            "ALiBi is computed exactly; transformers rounds it to bfloat16, so that its text may "
            "differ where a text is longer than 256 tokens"
        ]
    return []


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """What a model must be called with besides tokens and positions."""
    kind = model.config.model_type
    if kind not in ("idefics", "mllama", "mpt"):
        return {}
    none = torch.zeros(1, 1, 1, 1, device=model.device)
    if kind == "mpt":
        # Its code has no way without a mask; a mask of four dimensions is passed on as it is.
        return {"attention_mask": none}
    # Stand for images: another input says which ones there are (workers/vision/cross.py).
    if kind == "mllama":
        return {"cross_attention_states": none}
    name = "perceiver" if model.config.use_resampler else "image_encoder"
    return {f"{name}_embeddings": none, "image_attention_mask": none[0]}


def _score_and_mix(model: Any, module: Any) -> None:
    """Modules with a method `_attn` of query, key and value, [1, n_heads, n_tokens, head_dim]."""
    scale, window = 1.0, None
    if model.config.model_type == "gpt_neo":
        module.layer_idx = module.layer_id
        window = model.config.window_size if module.attention_type == "local" else None
        module.bias = None  # [1, 1, positions, positions]: the mask, which is not used
    elif model.config.model_type == "gpt_neox_japanese":
        scale = 1.0 / module.norm_factor
    else:
        scale = 1.0 / float(module.scale_attn)
    attend = _Attends(model, module, scale, sliding_window=window)

    def _attn(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
    ) -> tuple[torch.Tensor, None]:
        mixed = attend(query.to(value.dtype), key.to(value.dtype), value)
        return mixed.transpose(1, 2), None

    module._attn = MethodType(_attn, module)


def _bloom(model: Any, module: Any) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    ones = torch.ones(1, 2, dtype=torch.int64)
    slopes = build_alibi_tensor(ones, module.num_heads, torch.float32)[:, 0, 1].to(model.device)
    attend = _Attends(model, module, module.inv_norm_factor, alibi_slopes=slopes)

    def forward(
        self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        mixed = attend(*self._reshape(self.query_key_value(hidden_states)))
        return self.dense(mixed.flatten(2)) + residual, None

    module.forward = MethodType(forward, module)


def _falcon(model: Any, module: Any) -> None:
    from transformers.models.falcon import modeling_falcon

    slopes = None
    if model.config.alibi:
        ones = torch.ones(1, 2, dtype=torch.int64)
        alibi = modeling_falcon.build_alibi_tensor(ones, module.num_heads, torch.float32)
        slopes = (alibi[:, 0, 1] * module.inv_norm_factor).to(model.device)
    attend = _Attends(model, module, module.inv_norm_factor, alibi_slopes=slopes)
    group = module.num_heads // module.num_kv_heads

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        *_: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        joined = self.query_key_value(hidden_states)
        if self.new_decoder_architecture or not self.multi_query:
            # Of each key-value head: its queries, the key, the value.
            heads = joined.unflatten(2, (self.num_kv_heads, group + 2, self.head_dim))
            query, key, value = (
                heads[..., :-2, :].flatten(2, 3),
                heads[..., -2, :],
                heads[..., -1, :],
            )
        else:
            heads = joined.unflatten(2, (self.num_heads + 2, self.head_dim))
            query, key, value = heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1:, :]
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if slopes is None:
            query, key = modeling_falcon.apply_rotary_pos_emb(query, key, *position_embeddings)
        return self.dense(attend(query, key, value).flatten(2)), None

    module.forward = MethodType(forward, module)


def _mpt(model: Any, module: Any) -> None:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    # As its code has it: with ALiBi, and 8, whatever `attn_config` says of them.
    slopes = -build_mpt_alibi_tensor(module.n_heads, 2)[:, 0, 0].to(model.device)
    attend = _Attends(model, module, module.softmax_scale, alibi_slopes=slopes)

    def forward(self: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, None]:
        joined = self.Wqkv(hidden_states)
        if self.clip_qkv:
            joined = joined.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        heads = joined.unflatten(2, (3, self.n_heads, self.head_dim))
        return self.out_proj(attend(*(x.transpose(1, 2) for x in heads.unbind(2))).flatten(2)), None

    module.forward = MethodType(forward, module)


def _xglm(model: Any, module: Any) -> None:
    attend = _Attends(model, module, module.scaling)

    def forward(
        self: Any, hidden_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = (
            projected(hidden_states).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projected in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(query, key, value).flatten(2)), None

    module.forward = MethodType(forward, module)


PATCHES: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
    "bloom": ("BloomAttention", _bloom),
    "codegen": ("CodeGenAttention", _score_and_mix),
    "falcon": ("FalconAttention", _falcon),
    "gpt_neo": ("GPTNeoSelfAttention", _score_and_mix),
    "gpt_neox_japanese": ("GPTNeoXJapaneseAttention", _score_and_mix),
    "gptj": ("GPTJAttention", _score_and_mix),
    "mpt": ("MptAttention", _mpt),
    "xglm": ("XGLMAttention", _xglm),
}
"""By `model_type`: the class of its attention modules, and what to do to each."""

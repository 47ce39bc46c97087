"""What a model asks of attention, learned by running it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workers.attention.layer import AttentionSpec, AttentionWindow
from workers.attention.tracing import Untraceable, tracing
from workers.models.attention_patches import patch_attention

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def model_of(kind: str, **settings: Any) -> Any:
    config = AutoConfig.for_model(kind, **(SIZES | settings))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def traced(model: Any) -> dict[int, AttentionSpec]:
    two = torch.arange(2)[None]
    with tracing(model) as tracer, torch.inference_mode():
        model(input_ids=two, position_ids=two, use_cache=False)
    assert model.config._attn_implementation == "eager"
    return tracer.layers


def test_heads_dims_scales_and_windows_are_those_of_the_calls() -> None:
    model = model_of(
        "gemma2",
        num_key_value_heads=2,
        head_dim=24,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=64,
        attn_logit_softcapping=30.0,
    )
    full = AttentionSpec(4, 2, 24, 24, 0.125, AttentionWindow(), softcap=30.0)
    assert traced(model) == {0: full._replace(window=AttentionWindow(window=9)), 1: full}


def test_sinks_and_slopes_are_those_of_the_calls() -> None:
    sinks = model_of(
        "gpt_oss",
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
    )
    assert all(layer.sinks and not layer.slopes for layer in traced(sinks).values())
    slopes = model_of("bloom", n_layer=2, n_head=4)
    patch_attention(slopes)
    with tracing(slopes) as tracer, torch.inference_mode():
        slopes(input_ids=torch.arange(2)[None], use_cache=False)
    assert all(layer.slopes and not layer.sinks for layer in tracer.layers.values())
    assert len(tracer.layers) == 2


def test_windows_that_are_only_in_a_mask_are_found() -> None:
    model = model_of("phimoe", num_key_value_heads=2, sliding_window=9, num_local_experts=2)
    assert {layer.window for layer in traced(model).values()} == {AttentionWindow(window=9)}


def test_chunks_are_no_windows() -> None:
    kinds = ["chunked_attention", "full_attention"]
    model = model_of(
        "llama4_text",
        num_key_value_heads=2,
        attention_chunk_size=9,
        layer_types=kinds,
        num_local_experts=2,
        intermediate_size_mlp=40,
    )
    assert [layer.window for layer in traced(model).values()] == [
        AttentionWindow(chunk=9),
        AttentionWindow(),
    ]


def test_keys_and_values_may_have_other_dims() -> None:
    model = model_of(
        "deepseek_v3",
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=24,
        first_k_dense_replace=2,
    )
    assert set(traced(model).values()) == {AttentionSpec(4, 4, 32, 24, 32**-0.5)}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "bert attends in both directions"),
        ("diffllama", "DiffLlamaAttention of layer 0 attends more than once"),
        ("doge", "DogeAttention attends with a mask of its own"),
    ],
)
def test_attention_of_another_kind_is_named(kind: str, reason: str) -> None:
    with pytest.raises(Untraceable, match=reason):
        traced(model_of(kind))


def test_a_window_that_call_and_mask_do_not_agree_on_is_refused() -> None:
    model = model_of("mistral", num_key_value_heads=2, sliding_window=9)
    for layer in model.model.layers:
        layer.self_attn.config.sliding_window = 9
    with tracing(model) as tracer:
        mask = tracer.mask(1, 2, 2, config=model.config, local_size=7)
        q = torch.zeros(1, 4, 2, 8)
        attention = model.model.layers[0].self_attn
        with pytest.raises(Untraceable, match="a window of 9 and masks for one of 7"):
            tracer.attend(attention, q, q, q, mask, sliding_window=9)

"""Limits of texts, and rotary embeddings that follow the length of the text made to follow none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from workers.models.rope import PositionLimits, Scaling, fix, limits_of, override

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}


def config_of(rope: dict[str, Any] | None = None, **settings: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
    if rope is not None:
        sizes["rope_parameters"] = dict(rope)
    if rope is not LONGROPE:
        return AutoConfig.for_model("llama", **(sizes | settings))
    # Phi-3 has it beside them, and that is what counts.
    original = rope["original_max_position_embeddings"]
    return AutoConfig.for_model(
        "phi3", **(sizes | settings), original_max_position_embeddings=original
    )


def model_of(rope: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(config_of(rope)).eval()


@pytest.mark.parametrize(
    ("rope", "limits"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, PositionLimits(256, 256)),
        ({"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}, PositionLimits(1024, 1024)),
        (DYNAMIC, PositionLimits(256, 1024)),
        (LONGROPE, PositionLimits(64, 256)),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
            },
            PositionLimits(512, 512),
        ),
    ],
)
def test_limits_are_those_of_the_config(rope: dict[str, Any], limits: PositionLimits) -> None:
    assert limits_of(config_of(rope)) == limits


def test_a_number_that_no_text_reaches_is_no_limit() -> None:
    assert limits_of(config_of(max_position_embeddings=10**30)) == PositionLimits(4096, 2**20)


@pytest.mark.parametrize(
    ("kind", "name"), [("gpt2", "n_positions"), ("mpt", "max_seq_len"), ("opt", None)]
)
def test_limits_have_other_names_in_other_families(kind: str, name: str | None) -> None:
    config = AutoConfig.for_model(kind, **{name or "max_position_embeddings": 300})
    assert limits_of(config) == PositionLimits(300, 300)


def test_short_texts_keep_the_frequencies_of_transformers() -> None:
    for rope in (LONGROPE, DYNAMIC):
        model = model_of(rope)
        rotary = model.model.rotary_emb
        before = rotary.inv_freq.clone()
        longest, (note,) = fix(model, 0)
        assert longest == limits_of(model.config).exact
        assert f"texts of up to {longest} tokens are served. --max-total-tokens" in note
        # A long row of a batch has no say in the others any more.
        rotary(torch.zeros(1), torch.tensor([[3, 999]]))
        assert torch.equal(rotary.inv_freq, before)


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC])
def test_long_texts_have_one_embedding_throughout(rope: dict[str, Any]) -> None:
    model = model_of(rope)
    longest, (note,) = fix(model, 200 if rope is LONGROPE else 600)
    assert "texts of every length" in note
    expected, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model.config, seq_len=longest)
    rotary = model.model.rotary_emb
    for positions in ([[3]], [[longest - 1]], [[0]]):
        rotary(torch.zeros(1), torch.tensor(positions))
        assert torch.equal(rotary.inv_freq, expected)
    assert rotary.attention_scaling == scale


def test_more_is_not_had_than_the_model_has() -> None:
    assert fix(model_of(LONGROPE), 10**6)[0] == 256
    assert fix(model_of({"rope_type": "default", "rope_theta": 500.0}), 10**6) == (256, [])


def test_a_scaling_that_is_given_replaces_the_models() -> None:
    config = config_of({"rope_type": "default", "rope_theta": 500.0})
    override(config, Scaling("linear", 3.0))
    model = AutoModelForCausalLM.from_config(config)
    plain = model_of({"rope_type": "default", "rope_theta": 500.0})
    thirds = plain.model.rotary_emb.inv_freq / 3
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, thirds)
    assert limits_of(config) == PositionLimits(768, 768)


@pytest.mark.parametrize("scaling", [Scaling("yarn", 2.0), Scaling("linear", 0.5)])
def test_a_scaling_that_says_nothing_is_refused(scaling: Scaling) -> None:
    with pytest.raises(ValueError, match="--rope-scaling is linear or dynamic"):
        override(config_of(), scaling)


def test_a_scaling_needs_a_rotary_embedding() -> None:
    with pytest.raises(ValueError, match="which gpt2 does not have"):
        override(AutoConfig.for_model("gpt2"), Scaling("linear", 2.0))


def test_a_scaling_needs_an_embedding_of_one_axis() -> None:
    config = AutoConfig.for_model("qwen2_vl")
    config.text_config.rope_parameters["mrope_section"] = [16, 24, 24]
    with pytest.raises(ValueError, match="over one axis, which qwen2_vl does not have"):
        override(config, Scaling("linear", 2.0))

"""Experts in one tensor, each a weight of its own, against transformers' code for them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families.cases import CASES, config_of
from workers.layers.experts import PROJECTIONS, QuantizedExperts, StackedExperts
from workers.layers.replace import Replacements
from workers.quantization.method import QuantWeight
from workers.quantization.on_the_fly import OnTheFlyMethod

CPU = torch.device("cpu")
SAMPLE = ("aria_text", "gpt_oss", "minimax_m2")
WITHOUT = ("dbrx", "jetmoe", "llama4_text")
"""Families whose experts stay as they are: docs/quantization.md says so."""


def experts_of(name: str) -> tuple[QuantizedExperts, Any] | None:
    """Those of the last layer of a family, in int8, and transformers' module that has the very same
    weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(CASES[name]), dtype=torch.float32).eval()
    found = Replacements(model, CPU, OnTheFlyMethod("int8")).modules
    names = [name for name, one in found.items() if isinstance(one, QuantizedExperts)]
    if not names:
        assert not [one for one in found.values() if isinstance(one, StackedExperts)]
        return None
    ours, theirs = found[names[-1]], model.get_submodule(names[-1]).requires_grad_(False)
    assert isinstance(ours, QuantizedExperts)
    for one in theirs.parameters():
        one.normal_(0.0, 0.2)
    ours.load(dict(theirs.named_parameters()))
    for leaf in PROJECTIONS:
        meant = [
            one.dense(torch.float32) for one in ours._weights[leaf] if isinstance(one, QuantWeight)
        ]
        given = theirs.get_parameter(leaf)
        stacked = torch.stack([one.t() if theirs.is_transposed else one for one in meant])
        assert 0 < (stacked - given).abs().max() < 0.02 * given.abs().max()
        given.copy_(stacked)
    ours.settle()
    return ours, theirs


@pytest.mark.parametrize(
    "name",
    [
        name if name in SAMPLE else pytest.param(name, marks=pytest.mark.full)
        for name, case in CASES.items()
        if "moe" in case.kind or name in (*SAMPLE, *WITHOUT) or "num_experts" in str(case.settings)
        or case.kind in ("afmoe", "axk1", "beam", "deepseek_v2", "deepseek_v3", "dots1",
                         "flex_olmo", "mixtral", "olmoe")
    ],
)  # fmt: skip
@torch.no_grad()
def test_experts_give_what_transformers_does(name: str) -> None:
    pair = experts_of(name)
    assert (pair is None) == (name in WITHOUT)
    if pair is None:
        return
    ours, theirs = pair
    size = ours.sizes["gate_up_proj"]
    n = len(ours._weights["down_proj"])
    x = torch.randn(9, size.inputs)
    index = torch.stack([torch.randperm(n)[:2] for _ in range(9)])
    weights = torch.rand(9, 2)
    expected = theirs(x, index, weights)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, index, weights), expected, atol=1e-4, rtol=1e-4)

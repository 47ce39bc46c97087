"""Whole models in each method, and the dense ones that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.helpers.loading import load, pretrained
from tests.helpers.paged_sequences import PagedSequences
from tests.workers.models.test_sharding import Alone
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.checkpoints import quantized, rounded
from tests.workers.quantization.writers import awq, gptq
from workers.layers.experts import PROJECTIONS, QuantizedExperts
from workers.models.loading import FusedModel
from workers.models.pretrained import Pretrained
from workers.models.transformers_path import TransformersModel
from workers.quantization.method import QuantWeight
from workers.slices import cut as cut_tensor

MOST_DIFFERENCE = 1e-3
"""Of logits that are spread by 1 or less, in float32; of others, of their spread: sums of large
numbers are rounded by more."""

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "num_attention_heads": 2,
}


def matrix(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def plain_logits(dense: Path, implementation: str = "transformers") -> list[torch.Tensor]:
    """Of the model that a quantized one stands for, through the same code."""
    model = load(dense, torch.float32, CPU, implementation=implementation)
    return PagedSequences(model).run()


def assert_stands_for(folder: Path, dense: Path, *, fused: bool | None = None) -> TransformersModel:
    """Compare a quantized model, by each code that runs it, with the dense one that it stands for.

    Return it as it runs through transformers' code. `fused` says whether the fused decoder is
    expected to run it; None: it may or may not.
    """
    model = load(folder, torch.float32, CPU)
    assert fused is None or isinstance(model, FusedModel) == fused, model.notes
    implementation = "fused" if isinstance(model, FusedModel) else "transformers"
    assert_near(PagedSequences(model).run(), plain_logits(dense, implementation))
    model = load(folder, torch.float32, CPU, implementation="transformers")
    assert isinstance(model, TransformersModel)
    assert_near(PagedSequences(model).run(), plain_logits(dense))
    return model


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        spread = other.std()
        assert spread > 0.3  # so that the difference below says something
        assert (one - other).abs().max() < MOST_DIFFERENCE * max(1.0, float(spread))


def assert_ranks_have_all_experts(folder: Path, quantize: str = "") -> None:
    """Hold the parts that two ranks have of experts in one tensor to those of one rank: columns of
    gate and up together, and the bias of results once."""
    whole = _experts_of(pretrained(folder, quantize=quantize))
    n_columns = dict.fromkeys(PROJECTIONS, 0)
    for rank in range(2):
        ranks: Any = Alone(rank, 2)
        part = _experts_of(pretrained(folder, ranks, quantize=quantize))
        for name, weights in part._weights.items():
            outputs, inputs = part.cuts[name]
            slices = {0: outputs} if outputs is not None else {1: inputs or []}
            n_columns[name] += sum(one.size for one in outputs or inputs or [])
            for found, expected in zip(weights, whole._weights[name], strict=True):
                assert isinstance(found, QuantWeight)
                assert isinstance(expected, QuantWeight)
                dense = cut_tensor(expected.dense(torch.float32), slices)
                assert torch.equal(found.dense(torch.float32), dense)
        had = [getattr(one, "bias", None) is not None for one in part._weights["down_proj"]]
        assert had == [whole.sizes["down_proj"].bias and rank == 0] * len(had)
    sizes = whole.sizes
    assert n_columns["gate_up_proj"] == sizes["gate_up_proj"].outputs
    assert n_columns["down_proj"] == sizes["down_proj"].inputs


def _experts_of(loaded: Pretrained) -> QuantizedExperts:
    """The first layer's, as they were read."""
    found = next(one for one in loaded.module.modules() if isinstance(one, QuantizedExperts))
    loaded.fill(found, borrow=True)
    return found


GptqCase = tuple[int, str, bool, int, bool]


def gptq_folder(tmp_path: Path, kind: str, case: GptqCase, **changed: Any) -> tuple[Path, Path]:
    """A model in GPTQ, and the dense one it stands for."""
    bits, stored, symmetric, size, desc_act = case
    dense = saved(tmp_path / "dense", kind, **{**SIZES, **changed})

    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        k = weight.shape[1]
        group = np.arange(k) // (size if size > 0 else k)
        group = np.random.default_rng(k).permutation(group) if desc_act else group
        made = rounded(weight, bits, size, symmetric=symmetric, group=group)
        return gptq(made, bits, v2=stored == "gptq_v2"), made.dense

    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric,
        "desc_act": desc_act, "checkpoint_format": stored,
    }  # fmt: skip
    return quantized(dense, tmp_path / "gptq", write, settings), dense


def awq_folder(tmp_path: Path, kind: str, version: str, **changed: Any) -> tuple[Path, Path]:
    dense = saved(tmp_path / "dense", kind, **{**SIZES, **changed})

    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        made = rounded(weight, 4, 32)
        return awq(made, version), made.dense

    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": version,
                "zero_point": True}  # fmt: skip
    return quantized(dense, tmp_path / "awq", write, settings), dense

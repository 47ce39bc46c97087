"""MXFP4's experts, against what transformers dequantizes them to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

from tests.helpers.loading import load, pretrained
from tests.workers.models.test_rank_logits import MOST_DIFFERENCE, furthest, run
from tests.workers.models.test_sharding import Alone
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.checkpoints import assert_ranks_have_the_whole, weight_of
from tests.workers.quantization.folders import (
    SIZES,
    assert_ranks_have_all_experts,
    assert_stands_for,
    matrix,
)
from workers.errors import UnsupportedModel
from workers.kernels.codes import PackedCodes
from workers.layers.experts import QuantizedExperts
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.weight_files import SINGLE
from workers.quantization.method import Cut, Size
from workers.quantization.mxfp4 import E2M1, MXFP4Method
from workers.slices import Range


def written(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight [experts, n, k] in blocks and scales, a number at a time."""
    groups = weight.double().unflatten(-1, (-1, 32)).numpy()
    exponents = np.floor(np.log2(np.abs(groups).max(-1))) - 2
    values = groups / 2.0 ** exponents[..., None]
    codes = np.abs(values[..., None] - np.array(FP4_VALUES)).argmin(-1)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    return {
        "blocks": torch.from_numpy(blocks.astype(np.uint8)).contiguous(),
        "scales": torch.from_numpy((exponents + 127).astype(np.uint8)).contiguous(),
    }


def dequantized(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """By transformers: float32 [experts, k, n]."""
    return convert_moe_packed_tensors(tensors["blocks"], tensors["scales"], dtype=torch.float32)


def folder_of(tmp_path: Path, **changed: Any) -> tuple[Path, Path]:
    """A gpt-oss in MXFP4, and the dense one that it stands for."""
    sizes = {**SIZES, "intermediate_size": 96, "head_dim": 32, **changed}
    dense = saved(tmp_path / "dense", "gpt_oss", **sizes)
    packed = load_file(dense / SINGLE)
    meant = dict(packed)
    for name in list(packed):
        if re.search(r"experts\.\w+_proj$", name):
            made = written(packed.pop(name).transpose(1, 2))
            meant[name] = dequantized(made)
            packed |= {f"{name}_{leaf}": one for leaf, one in made.items()}
    assert len(packed) == len(meant) + 4
    folder = tmp_path / "mxfp4"
    shutil.copytree(dense, folder)
    save_file(packed, folder / SINGLE, {"format": "pt"})
    save_file(meant, dense / SINGLE, {"format": "pt"})
    config = json.loads((dense / "config.json").read_text())
    settings = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder, dense


def test_the_table_is_transformers() -> None:
    assert list(E2M1) == FP4_VALUES


def test_a_layer_is_read_bit_for_bit_and_cut() -> None:
    whole = written(matrix(96, 192)[None])
    whole["scales"][0, :5] = torch.tensor([0, 1, 100, 254, 0, 127]).to(torch.uint8)
    own = {leaf: one[0] for leaf, one in whole.items()}
    method, size = MXFP4Method(), Size(96, 192)
    found = weight_of(method, own, size)
    assert torch.equal(found.dense(torch.float32), dequantized(whole)[0].t())
    cuts = [Cut(outputs=[Range(8, 16), Range(64, 96)]), Cut(inputs=[Range(32, 128)])]
    assert_ranks_have_the_whole(method, own, size, cuts)
    other = own | {"scales": own["scales"].view(torch.float8_e8m0fnu)}
    again = weight_of(method, other, size)
    assert torch.equal(again.dense(torch.float32), found.dense(torch.float32))


def test_logits(tmp_path: Path) -> None:
    folder, dense = folder_of(tmp_path)
    model = assert_stands_for(folder, dense, fused=False)
    assert model.quantization == "mxfp4, 4 bits in groups of 32 inputs"
    experts = [one for one in model.module.modules() if isinstance(one, QuantizedExperts)]
    assert len(experts) == 2
    assert isinstance(experts[0]._weights["down_proj"][4], PackedCodes)
    load(folder, torch.float32, CPU, quantize="mxfp4")
    with pytest.raises(UnsupportedModel, match="--quantize gptq does not fit the model, whose"):
        load(folder, torch.float32, CPU, quantize="gptq")


def test_ranks_have_the_columns_of_all_experts(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path)
    assert_ranks_have_all_experts(folder)


@pytest.mark.full
def test_two_ranks(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path)
    models = [("transformers", folder)]
    assert max(furthest(models, run(models, 2, tmp_path))) < MOST_DIFFERENCE


def test_a_file_of_another_shape_is_named(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path)
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    save_file(tensors | {name: tensors[name][:, :, :2].contiguous()}, folder / SINGLE)
    message = rf"{name} is uint8 \[5, 64, 2\] in the checkpoint and uint8 or .* \[5, 64, 3\] by"
    with pytest.raises(BrokenCheckpoint, match=message):
        load(folder, torch.float32, CPU)


def test_columns_that_are_no_whole_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="groups of 32 inputs, of which the 80 of its"):
        MXFP4Method().slots(Size(64, 80), torch.float32)
    folder, _ = folder_of(tmp_path, intermediate_size=32)
    ranks: Any = Alone(0, 2)
    with pytest.raises(UnsupportedModel, match="32 columns in groups of 32 cannot be spread"):
        pretrained(folder, ranks)

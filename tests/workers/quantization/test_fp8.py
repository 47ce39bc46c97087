"""fp8, with scales of every scope, against a reading of the layout in float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.loading import load
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.checkpoints import (
    Write,
    assert_ranks_have_the_whole,
    quantized,
    weight_of,
)
from tests.workers.quantization.folders import SIZES, assert_stands_for, matrix
from workers.errors import UnsupportedModel
from workers.layers.experts import QuantizedExperts
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.weight_files import SINGLE
from workers.quantization.codes import Codes
from workers.quantization.fp8 import FP8Method
from workers.quantization.grouped import GroupedWeight
from workers.quantization.method import Cut, Misfit, Size
from workers.slices import Range

E4M3 = torch.float8_e4m3fn
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {"quant_method": "fp8", "activation_scheme": "static"},
    "dynamic": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "rows": {"quant_method": "fp8"},
    "blocks": {"quant_method": "fp8", "weight_block_size": [48, 32], "fmt": "e4m3"},
    "fbgemm": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
}


def numbers(codes: torch.Tensor) -> torch.Tensor:
    """float64: what each byte of e4m3 is, by its fields."""
    bits = codes.view(torch.uint8).long()
    sign, exponent, fraction = 1 - 2.0 * (bits >> 7), bits >> 3 & 15, (bits & 7).double()
    small = fraction / 8 * 2.0**-6
    return sign * torch.where(exponent == 0, small, (1 + fraction / 8) * 2.0 ** (exponent - 7))


def write(kind: str, block: tuple[int, int] = (48, 32)) -> Write:
    def written(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        n, k = weight.shape
        rows, columns = {"blocks": block, "rows": (1, k), "fbgemm": (1, k)}.get(kind, (n, k))
        scale = torch.zeros(-(-n // rows), -(-k // columns))
        for row in range(scale.shape[0]):
            for column in range(scale.shape[1]):
                part = weight[row * rows :, column * columns :][:rows, :columns]
                scale[row, column] = part.abs().max() / 448
        each = scale.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
        codes = (weight / each).to(E4M3)
        dense = (numbers(codes) * each.double()).float()
        tensors = {
            "static": {"weight_scale": scale[0, 0], "input_scale": torch.ones(1)},
            "dynamic": {"weight_scale": scale[0]},
            "blocks": {"weight_scale_inv": scale},
            "rows": {"weight_scale": scale[:, 0]},
            "fbgemm": {"weight_scale": scale, "input_scale_ub": torch.ones(())},
        }[kind]
        return {"weight": codes, **tensors}, dense

    return written


def test_every_number_of_e4m3() -> None:
    bits = torch.tensor([x for x in range(256) if x & 127 != 127], dtype=torch.uint8)
    found = Codes(bits[None], len(bits), e4m3=True).values(slice(None))
    assert torch.equal(found[0].double(), numbers(bits))
    assert torch.equal(found[0], bits.view(E4M3).float())


def test_nan_is_no_weight() -> None:
    tensors, _ = write("rows")(matrix(8, 16))
    tensors["weight"].view(torch.uint8)[3, 5] = 255
    with pytest.raises(Misfit, match="NaN"):
        weight_of(FP8Method.of(SETTINGS["rows"]), tensors, Size(8, 16))


@pytest.mark.parametrize("kind", SETTINGS)
def test_fp8_is_read_bit_for_bit(kind: str) -> None:
    tensors, dense = write(kind)(matrix(100, 80))
    method, size = FP8Method.of(SETTINGS[kind]), Size(100, 80)
    found = weight_of(method, tensors, size)
    assert isinstance(found, GroupedWeight)
    assert torch.equal(found.codes.packed, tensors["weight"].view(torch.uint8))
    assert torch.equal(found.dense(torch.float32), dense)
    x = matrix(3, 80)
    torch.testing.assert_close(found.apply(x), x @ dense.t(), atol=1e-4, rtol=1e-5)
    ids = torch.tensor([3, 99])
    assert torch.equal(found.rows(ids), dense[ids])
    cuts = [Cut(outputs=[Range(0, 40)]), Cut(outputs=[Range(8, 16), Range(60, 100)])]
    cuts += [Cut(inputs=[Range(32, 64)]), Cut(inputs=[Range(32, 80)])]
    assert_ranks_have_the_whole(method, tensors, size, cuts)


def test_a_rank_may_have_half_a_block() -> None:
    settings = SETTINGS["blocks"] | {"weight_block_size": [128, 128]}
    with pytest.raises(UnsupportedModel, match="groups of 128 inputs would be cut at 0, 136"):
        FP8Method.of(settings).cut(Size(256, 384), Cut(inputs=[Range(0, 136)]))
    FP8Method.of(settings).cut(Size(256, 384), Cut(inputs=[Range(64, 384)]))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "blocks"),
        ("phi3", "dynamic"),
        ("qwen3_moe", "blocks"),
        pytest.param("qwen2", "static", marks=pytest.mark.full),
        pytest.param("gemma2", "fbgemm", marks=pytest.mark.full),
        pytest.param("deepseek_v3", "blocks", marks=pytest.mark.full),
    ],
)
def test_logits_of_fp8(tmp_path: Path, family: str, kind: str) -> None:
    dense = saved(tmp_path / "dense", family, **SIZES)
    folder = quantized(dense, tmp_path / "fp8", write(kind), SETTINGS[kind])
    model = assert_stands_for(folder, dense)
    assert model.quantization.startswith(f"{SETTINGS[kind]['quant_method']}, 8 bits")


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    """As transformers has them in memory, and some checkpoints in their files."""
    dense = saved(tmp_path / "dense", "qwen3_moe", **SIZES)
    settings = SETTINGS["blocks"] | {"weight_block_size": [32, 32]}
    folder = quantized(dense, tmp_path / "fp8", write("blocks", (32, 32)), settings)
    tensors = load_file(folder / SINGLE)
    prefixes = {name[: name.index("experts.") + 8] for name in tensors if "experts." in name}
    assert len(prefixes) == 2
    for prefix in prefixes:
        for leaf in ("weight", "weight_scale_inv"):
            apart = {
                name: torch.stack(
                    [
                        tensors.pop(f"{prefix}{at}.{name}.{leaf}").view(torch.uint8)
                        for at in range(5)
                    ]
                )
                for name in ("gate_proj", "up_proj", "down_proj")
            }
            dtype = E4M3 if leaf == "weight" else torch.float32
            gate_up = torch.cat([apart["gate_proj"], apart["up_proj"]], 1)
            end = leaf.removeprefix("weight")
            tensors[f"{prefix}gate_up_proj{end}"] = gate_up.view(dtype)
            tensors[f"{prefix}down_proj{end}"] = apart["down_proj"].view(dtype)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    model = assert_stands_for(folder, dense)
    experts = [one for one in model.module.modules() if isinstance(one, QuantizedExperts)]
    assert len(experts) == 2


def test_a_layer_without_scales(tmp_path: Path) -> None:
    def spoilt(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tensors, dense = write("blocks")(weight)
        del tensors["weight_scale_inv"]
        return tensors, dense

    dense = saved(tmp_path / "dense", "llama", **SIZES)
    folder = quantized(dense, tmp_path / "fp8", spoilt, SETTINGS["blocks"])
    with pytest.raises(BrokenCheckpoint, match=r"layers.0.*: it has neither weight_scale nor"):
        load(folder, torch.float32, CPU)


@pytest.mark.parametrize("codes", [E4M3, torch.int8])
def test_weights_in_codes_are_not_served_as_plain_ones(tmp_path: Path, codes: torch.dtype) -> None:
    """ModelOpt's config.json says nothing of them, nor one that was copied from another model."""
    dense = saved(tmp_path / "dense", "llama", **SIZES)

    def written(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"weight": weight.to(codes), "weight_scale": torch.ones(())}, weight

    folder = quantized(dense, tmp_path / "codes", written, SETTINGS["rows"])
    shutil.copy(dense / "config.json", folder)
    kind = str(codes).removeprefix("torch.")
    why = rf"quantized \(model.* is {kind}\), .* say how: get"
    with pytest.raises(UnsupportedModel, match=why):
        load(folder, torch.float32, CPU)
    (folder / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"say how \(hf_quant_config\.json.* is not read\)"):
        load(folder, torch.float32, CPU)


def test_plain_weights_of_eight_bits_are_served(tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", "llama", **SIZES)
    tensors = {name: one.to(E4M3) for name, one in load_file(dense / SINGLE).items()}
    save_file(tensors, dense / SINGLE, {"format": "pt"})
    assert load(dense, torch.float32, CPU).quantization == ""

"""bitsandbytes, against its layout as written block by block, and the package where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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
from workers.models.checkpoint import BrokenCheckpoint
from workers.quantization.bitsandbytes import BitsAndBytesMethod
from workers.quantization.grouped import GroupedWeight
from workers.quantization.method import Cut, Size
from workers.slices import Range

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (
    0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
    0.0, -0.005208333333, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25,
)  # fmt: skip
TABLES = {"nf4": NF4, "fp4": FP4}
BYTES = torch.linspace(-1, 1, 256)
"""What nested codes stand for: any table will do."""
SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4-nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}


def four_bits(weight: torch.Tensor, kind: str, nested: bool) -> tuple[dict[str, Any], torch.Tensor]:
    flat = weight.flatten()
    table = torch.tensor(TABLES[kind])
    blocks = flat.view(-1, 64)
    absmax = blocks.abs().amax(1)
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float16", "shape": list(weight.shape)}
    tensors: dict[str, torch.Tensor] = {}
    if nested:
        offset = float(absmax.mean())
        outer = torch.stack([part.abs().max() for part in (absmax - offset).split(256)])
        each = outer.repeat_interleave(256)[: len(absmax)]
        inner = ((absmax - offset) / each)[:, None].sub(BYTES).abs().argmin(1)
        tensors = {
            "weight.absmax": inner.to(torch.uint8),
            "weight.nested_absmax": outer,
            "weight.nested_quant_map": BYTES.clone(),
        }
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        absmax = BYTES[inner] * each + offset
    else:
        tensors = {"weight.absmax": absmax}
    codes = (blocks / absmax[:, None])[..., None].sub(table).abs().argmin(-1)
    dense = table[codes] * absmax[:, None]
    pairs = codes.view(-1, 2).to(torch.uint8)
    text = json.dumps(state).encode()
    return {
        "weight": (pairs[:, 0] * 16 + pairs[:, 1])[:, None],
        "weight.quant_map": table,
        f"weight.quant_state.bitsandbytes__{kind}": torch.tensor(list(text), dtype=torch.uint8),
        **tensors,
    }, dense.view(weight.shape)


def writer(kind: str) -> Write:
    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if kind != "int8":
            return four_bits(weight, kind[:3], nested=kind.endswith("nested"))
        scale = weight.abs().amax(1)
        codes = (weight / scale[:, None] * 127).round().to(torch.int8)
        tensors = {"weight": codes, "SCB": scale, "weight_format": torch.zeros(()).to(torch.uint8)}
        return tensors, (codes.double() * scale.double()[:, None] / 127).float()

    return write


def method_of(kind: str) -> BitsAndBytesMethod:
    return BitsAndBytesMethod.of(SETTINGS[kind])


@pytest.mark.parametrize("shape", [(64, 192), (48, 96)])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_layer_is_read_bit_for_bit(kind: str, shape: tuple[int, int]) -> None:
    """Of rows that are whole blocks, and of others."""
    tensors, dense = writer(kind)(matrix(*shape))
    method, size = method_of(kind), Size(*shape)
    found = weight_of(method, tensors, size)
    assert isinstance(found, GroupedWeight)
    if kind == "int8":  # whose scale is rounded before it is used
        torch.testing.assert_close(found.dense(torch.float32), dense, rtol=2e-7, atol=0.0)
    else:
        assert torch.equal(found.dense(torch.float32), dense)
    x = matrix(3, shape[1])
    torch.testing.assert_close(found.apply(x), x @ dense.t(), atol=1e-4, rtol=1e-5)
    half = shape[1] // 3 // 32 * 32
    cuts = [Cut(outputs=[Range(0, 16), Range(40, 48)]), Cut(inputs=[Range(half, 2 * half)])]
    assert_ranks_have_the_whole(method, tensors, size, cuts)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen2", "nf4-nested"),
        ("phi3", "fp4"),
        ("llama", "int8"),
        pytest.param("llama", "nf4", marks=pytest.mark.full),
        pytest.param("mixtral", "nf4", marks=pytest.mark.full),
        pytest.param("gemma2", "int8", marks=pytest.mark.full),
    ],
)
def test_logits(tmp_path: Path, family: str, kind: str) -> None:
    dense = saved(tmp_path / "dense", family, **SIZES)
    settings = {"quant_method": "bitsandbytes"} | SETTINGS[kind]
    folder = quantized(dense, tmp_path / "bnb", writer(kind), settings)
    model = assert_stands_for(folder, dense)
    assert model.quantization.startswith(f"bitsandbytes {kind.partition('-')[0]}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"weight.absmax": torch.ones(3)}, r"its weight.absmax has 3 numbers, and there are \d+"),
        ({"weight": torch.ones((7, 1), dtype=torch.uint8)}, r"its weight has 7 bytes, and \["),
        ({"weight.quant_map": torch.ones(15)}, r"quant_map is float32 \[15\] in the checkpoint"),
        (
            {"weight.quant_state.bitsandbytes__nf4": torch.ones(3, dtype=torch.uint8)},
            "its quant_state cannot be read",
        ),
    ],
)
def test_a_layer_that_is_not_what_it_says(
    tmp_path: Path, spoil: dict[str, torch.Tensor], message: str
) -> None:
    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tensors, dense = writer("nf4")(weight)
        return tensors | spoil, dense

    dense = saved(tmp_path / "dense", "llama", **SIZES)
    settings = {"quant_method": "bitsandbytes"} | SETTINGS["nf4"]
    folder = quantized(dense, tmp_path / "bnb", write, settings)
    with pytest.raises(BrokenCheckpoint, match=rf"layers\.0\..*{message}"):
        load(folder, torch.float32, CPU)


def test_another_table_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="bitsandbytes' af4; served are nf4, fp4 and int8"):
        BitsAndBytesMethod.of({"load_in_4bit": True, "bnb_4bit_quant_type": "af4"})


@pytest.mark.full
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_what_the_package_writes(kind: str, nested: bool) -> None:
    package: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = torch.nn.Linear(192, 64, bias=False)
    theirs = package.nn.Linear4bit(192, 64, False, quant_type=kind, compress_statistics=nested)
    theirs.load_state_dict(layer.state_dict())
    tensors = theirs.to("cpu").state_dict()
    expected = package.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    found = weight_of(method_of(kind), tensors, Size(64, 192)).dense(torch.float32)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-7)

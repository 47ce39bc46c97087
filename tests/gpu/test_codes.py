"""Products with codes on a GPU, against the dense weights that they stand for in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton", reason="the package triton is not installed")

from benchmarks import gpu_kernels
from tests.gpu.test_decoder_kernels import ACTIVATIONS
from tests.workers.kernels.test_codes import dense, of_kind
from workers.kernels import device_codes, triton_codes
from workers.kernels.codes import CodedWeight
from workers.kernels.device_codes import (
    CODED_ROWS,
    E4M3,
    UNROUNDED_ROWS,
    DeviceCodes,
    GatedCodes,
)

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KINDS = ("4", "4 with zeros", "8", "8 with zeros", "uneven", "e4m3")
ROUNDED = {BF16: 2**-7, F16: 2**-10}
"""Of a number, what rounding to a dtype may take away; Triton's interpreter cuts off."""


def coded(
    device: str,
    kind: str,
    shape: tuple[int, int],
    group: int | None,
    dtype: torch.dtype,
    scales: torch.dtype = F16,
) -> CodedWeight:
    """`dtype` is that of the bias, which those of more than 17 rows have."""
    made = of_kind(kind, *shape, group, scales)
    if made.bias is not None:
        made = dataclasses.replace(made, bias=made.bias.to(dtype))
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    moved: dict[str, Any] = {
        name: x.to(device) for name, x in fields.items() if isinstance(x, torch.Tensor)
    }
    return dataclasses.replace(made, **moved)


def normal(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape).to(device, dtype)


def assert_product(out: torch.Tensor, x: torch.Tensor, weight: CodedWeight, unit: float) -> None:
    """`out` is the exact result but for the error of sums in float32, `unit` of each product, and
    being rounded to its dtype."""
    matrix = dense(weight).double()
    bias = None if weight.bias is None else weight.bias.double()
    wanted = functional.linear(x.double(), matrix, bias)
    size = functional.linear(x.double().abs(), matrix.abs())
    assert out.shape == wanted.shape
    rounded = wanted.abs() * ROUNDED.get(out.dtype, 0.0)
    assert ((out.double() - wanted).abs() <= size * (2**-18 + unit) + rounded + 1e-6).all()


@pytest.mark.parametrize("kind", [*KINDS, "3", "6 with zeros"])
@pytest.mark.parametrize(
    ("k", "group", "scales"),
    [
        (160, 32, F16),
        pytest.param(192, 96, F32, marks=pytest.mark.full),
        pytest.param(256, 64, BF16, marks=pytest.mark.full),
        (200, None, F32),
    ],
)
def test_the_dequantized_weight_is_exact(
    device: str, kind: str, k: int, group: int | None, scales: torch.dtype
) -> None:
    weight = coded(device, kind, (37, k), group, F32, scales)
    layer, wanted = DeviceCodes(weight, F32), dense(weight)
    assert torch.equal(layer.dequantized(0, 37, F32), wanted)
    assert torch.equal(layer.dequantized(30, 7, F32), wanted[30:])


FEW = [
    ("4", 1, BF16, 160, 32),
    ("8 with zeros", 3, F16, 96, 32),
    ("e4m3", 4, BF16, 72, None),
    ("uneven", 2, BF16, 128, 64),
    ("4 with zeros", 5, BF16, 1152, 128),
    ("e4m3", 20, F16, 160, 32),
    ("8", 70, BF16, 72, None),
    ("uneven", 7, F16, 192, 96),
]
ALL = [
    (kind, rows, dtype, k, group)
    for kind in KINDS
    for rows in (1, 4, 6, 40, 128)
    for dtype in (BF16, F16)
    for k, group in ((160, 32), (192, 96), (1152, 128), (256, 64), (200, None))
]


@pytest.mark.parametrize(
    ("kind", "rows", "dtype", "k", "group"),
    [*FEW, *(pytest.param(*one, marks=pytest.mark.full) for one in ALL if one not in FEW)],
)
def test_few_rows_are_multiplied_with_the_codes(
    device: str, kind: str, rows: int, dtype: torch.dtype, k: int, group: int | None
) -> None:
    weight, x = coded(device, kind, (19, k), group, dtype), normal(device, dtype, rows, k)
    layer = DeviceCodes(weight, dtype)
    parts, whole = layer.parts(x), layer.whole(x)
    assert parts.dtype == whole.dtype == F32
    assert (len(parts) > 1) == (rows > 4 and k > 1000)
    unit = ROUNDED[dtype] if kind == "uneven" and rows > 4 else 0.0
    assert_product(parts.sum(0), x, weight, unit)
    assert_product(whole, x, weight, unit)


@pytest.mark.parametrize("rows", [4, 9])
def test_a_row_has_the_same_bits_beside_any_others(device: str, rows: int) -> None:
    k = 1152 if rows > 4 else 256  # in two parts, or in one
    layer = DeviceCodes(coded(device, "4 with zeros", (10, k), 128, BF16), BF16)
    x = normal(device, BF16, rows, k)
    others = torch.randn_like(x) * 50
    others[1] = x[1]
    assert torch.equal(layer.parts(x)[:, 1], layer.parts(others)[:, 1])


@pytest.mark.parametrize(
    ("activation", "rows", "kind"),
    [
        ("silu", 2, "4 with zeros"),
        ("gelu", 7, "8"),
        ("silu", 70, "8 with zeros"),
        ("gelu_tanh", CODED_ROWS + 1, "e4m3"),
    ],
)
def test_gate_and_up_meet_in_one_kernel(device: str, activation: str, rows: int, kind: str) -> None:
    gate, up = (coded(device, kind, (24, 160), 32, F16) for _ in range(2))
    up = dataclasses.replace(up, codes=up.codes.flip(0), scales=up.scales.flip(1))
    x = normal(device, F16, rows, 160)
    found = GatedCodes(gate, up, F16, activation)(x)
    assert gate.bias is not None
    gates, ups = (functional.linear(x.float(), dense(one), gate.bias.float()) for one in (gate, up))
    wanted = ACTIVATIONS[activation](gates) * ups
    assert found.dtype == F16
    assert ((found.float() - wanted).abs() / (1 + wanted.abs())).max() < 0.01


@pytest.mark.parametrize(("rows", "dtype"), [(CODED_ROWS + 1, BF16), (2, F32)])
def test_many_rows_and_float32_are_multiplied_with_the_dequantized_weight(
    device: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, x = (
        coded(device, "4 with zeros", (37, 160), 32, dtype),
        normal(device, dtype, rows, 160),
    )
    monkeypatch.setattr(device_codes, "PIECE", 16 * 160)
    layer = DeviceCodes(weight, dtype)
    (only,), whole = layer.parts(x), layer.whole(x)
    assert only.dtype == dtype
    assert whole.dtype == F32
    for found, unit in ((only, 0.01), (whole, 0.01)):
        assert_product(found, x, weight, unit if dtype is BF16 else 0.0)


def test_inputs_come_in_the_order_of_the_codes(device: str) -> None:
    weight = coded(device, "4", (19, 64), 32, BF16)
    order = torch.randperm(64, dtype=torch.int32).to(device)
    weight = dataclasses.replace(weight, order=order)
    layer = DeviceCodes(weight, BF16)
    for shape in ((1, 64), (2, 3, 64), (0, 64), (2, CODED_ROWS, 64)):
        x = normal(device, BF16, *shape)
        found = layer.apply(x)
        assert found.shape == (*shape[:-1], 19)
        assert found.dtype == BF16
        assert_product(found.view(-1, 19), x.view(-1, 64), weight, 0.02)


def test_many_rows_are_rounded_where_the_gpu_multiplies_e4m3(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":
        monkeypatch.setattr(device_codes, "_has_scaled_mm", lambda given, whole: whole)
    elif torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply e4m3")
    weight = coded(device, "e4m3", (48, 80), None, BF16)
    layer = DeviceCodes(weight, BF16)
    assert layer.rounds_inputs
    assert "more than 64 tokens, activations are rounded to e4m3" in str(layer.note)
    x = normal(device, BF16, UNROUNDED_ROWS + 1, 80)
    x[3] = 0
    (found,) = layer.parts(x)
    assert_product(found, x, weight, 2**-4)
    # Those of few rows are not.
    few = x[:UNROUNDED_ROWS].contiguous()
    assert_product(layer.parts(few).sum(0), few, weight, 0.0)


def test_rows_are_rounded_by_their_largest_number(device: str) -> None:
    if device != "cpu" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not have e4m3")
    x = normal(device, BF16, 3, 80) * torch.tensor([[1.0], [1e-3], [0.0]], device=device)
    x = x.bfloat16()
    codes = torch.empty((3, 128), dtype=E4M3, device=device)
    scales = torch.empty((3, 1), device=device)
    triton_codes.quantize_rows[(3,)](codes, scales, x, 80, SIZE=64)
    assert torch.allclose(
        scales, x.float().abs().amax(1, keepdim=True) / 448 + (x == 0).all(1, keepdim=True)
    )
    in_order = codes.float().view(3, 2, 32, 2).transpose(2, 3).reshape(3, 128)
    assert (in_order[:, 80:] == 0).all()
    error = (in_order[:, :80] * scales - x.float()).abs()
    assert (error <= x.float().abs() * 2**-4 + scales * 2**-10).all()


@dataclasses.dataclass(frozen=True)
class Shifted(CodedWeight):
    minimums: torch.Tensor | None = None


def test_what_the_kernels_do_not_have_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="multiple of 32 inputs, not 48"):
        DeviceCodes(coded(device, "4", (19, 96), 48, BF16), BF16)
    weight = coded(device, "4", (19, 96), 32, BF16)
    with pytest.raises(ValueError, match=r"do not take scales in torch\.int8"):
        DeviceCodes(dataclasses.replace(weight, scales=weight.scales.char()), BF16)
    # What is not known yet would be left out in silence.
    shifted = Shifted(weight.codes, weight.scales, 4, 32, minimums=weight.scales)
    with pytest.raises(ValueError, match="do not take minimums"):
        DeviceCodes(shifted, BF16)


def test_what_the_benchmark_times_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MOST_LAYERS", 1)
    shape = (20, 64, "silu")
    for name, rows, used in (
        ("nf4 g64", 1, "gemv*"),
        ("fp8", CODED_ROWS + 1, "many*"),
    ):
        n_bytes, works = gpu_kernels.coded(gpu_kernels.FORMS[name], shape, rows, BF16, device, 0)
        assert n_bytes >= 20 * 64 * gpu_kernels.FORMS[name].bits // 8
        assert used in [name for name, *_ in works]
        for _, n_layers, run in works:
            assert n_layers == 2
            run()

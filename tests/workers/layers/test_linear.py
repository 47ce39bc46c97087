"""Linear layers against torch's in float32, and the kernel's promise that rows are independent."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.our_layers import replaced, settled
from workers import native
from workers.kernels import packed
from workers.kernels.weight import LayerWeight
from workers.layers.layer import Layer
from workers.layers.linear import Linear
from workers.quantization import plain
from workers.quantization.method import Size
from workers.quantization.plain import PlainWeight
from workers.quantization.registry import PLAIN

BF16 = torch.bfloat16
SHAPES = [(576, 576), (192, 576), (1536, 64), (64, 1536), (1, 2), (49, 32), (100, 31), (17, 1)]
N_ROWS = [1, 2, 7, 8, 9, 16, 17, 33, 70, 300]


NEEDS_AVX512_BF16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no AVX512_BF16"
)


@pytest.fixture(params=["kernel", "onednn", "torch"])
def form(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_kernels: None
) -> str:
    """Each form of a bfloat16 weight, the last two as machines get them that lack the first."""
    if request.param != "kernel":
        request.getfixturevalue("no_kernels")
    else:
        request.getfixturevalue("needs_bf16_kernel")
    if request.param == "torch":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return str(request.param)


@pytest.fixture
def needs_kernel() -> None:
    try:
        packed.kernel()
    except native.NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def needs_bf16_kernel(needs_kernel: None) -> None:
    """Of the library in use, which may be for other processors than this one."""
    if not packed.kernel().multiplies_bf16():
        pytest.skip("the kernels do not multiply bfloat16")


def linear(n: int, k: int, bias: bool = False, dtype: torch.dtype = BF16) -> nn.Linear:
    torch.manual_seed(n * 10_000 + k)
    return nn.Linear(k, n, bias, dtype=dtype)


def exact(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.linear(x.double(), layer.weight.double(), bias)


def assert_rounded(out: torch.Tensor, layer: nn.Linear, x: torch.Tensor) -> None:
    """`out` is the exact result but for one rounding to bfloat16 and the float32 sum's error."""
    wanted = exact(layer, x)
    size = nn.functional.linear(x.double().abs(), layer.weight.double().abs())
    assert out.shape == wanted.shape
    assert out.dtype == BF16
    allowed = wanted.abs() * 2**-8 + size * layer.in_features * 2**-24
    assert ((out.double() - wanted).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@torch.inference_mode()
def test_a_row_is_the_same_in_any_batch_whatever_the_width_of_the_last_panel(
    needs_kernel: None, dtype: torch.dtype
) -> None:
    for n, k in [*SHAPES, (8, 96), (16, 64), (56, 576)]:
        layer = packed.PackedWeight(linear(n, k, dtype=dtype).weight)
        x = torch.randn(9, k).to(dtype)
        alone = torch.cat([layer.apply(row[None]) for row in x])
        for rows in range(2, 10):
            assert torch.equal(layer.apply(x[:rows]), alone[:rows]), (n, k, rows)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@torch.inference_mode()
def test_it_computes_what_torch_computes(form: str, n: int, k: int, bias: bool) -> None:
    plain = linear(n, k, bias)
    ours = settled(plain)
    for m in N_ROWS:
        x = torch.randn(m, k, dtype=BF16)
        assert_rounded(ours(x), plain, x)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(
    needs_bf16_kernel: None, n: int, k: int
) -> None:
    ours = settled(linear(n, k, bias=True))
    x = torch.randn(300, k, dtype=BF16)
    alone = torch.cat([ours(row[None]) for row in x])
    for m in (*range(1, 71), 300):
        assert torch.equal(ours(x[:m]), alone[:m])
        assert torch.equal(ours(x[-m:]), alone[-m:])


@torch.inference_mode()
def test_a_row_has_the_same_bits_on_any_number_of_threads(needs_kernel: None) -> None:
    ours = settled(linear(200, 96))
    x = torch.randn(37, 96, dtype=BF16)
    n_threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            results.append(ours(x))
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(x, results[0]) for x in results)


@torch.inference_mode()
def test_batch_dimensions_are_kept(form: str) -> None:
    plain = linear(48, 32)
    ours = settled(plain)
    for shape in [(32,), (1, 5, 32), (2, 3, 4, 32), (1, 0, 32), (0, 32)]:
        x = torch.randn(shape, dtype=BF16)
        assert_rounded(ours(x), plain, x)


@torch.inference_mode()
def test_an_input_need_not_be_contiguous(form: str) -> None:
    plain = linear(48, 32)
    ours = settled(plain)
    wide = torch.randn(6, 80, dtype=BF16)
    for x in (wide[:, 7:39], wide[::2, 7:39], wide[None, 1:4, 8:40]):
        assert_rounded(ours(x), plain, x)
    columns = torch.randn(32, 6, dtype=BF16).T
    assert_rounded(ours(columns), plain, columns)


@torch.inference_mode()
def test_not_a_number_and_infinity_stay_in_their_row(form: str) -> None:
    ours = settled(linear(50, 31))
    x = torch.randn(9, 31, dtype=BF16)
    good = ours(x)
    x[3, 5], x[6, 30] = float("nan"), float("inf")
    out = ours(x)
    assert out[3].isnan().all()
    assert not out[6].isfinite().any()
    rest = [0, 1, 2, 4, 5, 7, 8]
    assert torch.equal(out[rest], good[rest])


@torch.inference_mode()
def test_merged_layers_give_their_results_side_by_side(needs_kernel: None) -> None:
    parts = [linear(n, 64, bias=True) for n in (96, 32, 40)]
    x = torch.randn(1, 5, 64, dtype=BF16)
    prepare = PLAIN.prepared("c_linear", [Size(n, 64, True) for n in (96, 32, 40)])
    assert prepare is not None
    weights = [PlainWeight(part.weight.detach(), part.bias.detach()) for part in parts]
    merged: LayerWeight = prepare(weights, "")
    for part, out in zip(parts, merged.apply(x).split([96, 32, 40], dim=-1), strict=True):
        assert_rounded(out, part, x)
        assert torch.equal(out, settled(part)(x))


@torch.inference_mode()
def test_float32_has_torchs_own_bits() -> None:
    plain = linear(96, 64, bias=True, dtype=torch.float32)
    x = torch.randn(11, 64)
    assert torch.equal(settled(plain)(x), plain(x))


def test_a_wrong_input_is_refused(needs_bf16_kernel: None) -> None:
    ours = settled(linear(48, 32))
    for x in (
        torch.zeros(2, 33, dtype=BF16),
        torch.zeros(2, 32),
        torch.zeros(2, 32, device="meta"),
    ):
        with pytest.raises(
            ValueError, match=r"takes torch.bfloat16 on the cpu of shape \[..., 32\], not"
        ):
            ours(x)


class Toy(nn.Module):
    """An embedding tied to its output layer, and a layer that stands in two places."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32, dtype=dtype)
        self.up = nn.Linear(32, 64, dtype=dtype)
        self.blocks = nn.ModuleList(
            [nn.Linear(64, 64, dtype=dtype), nn.Linear(64, 32, dtype=dtype)]
        )
        self.again = self.blocks[0]
        self.head = nn.Linear(32, 50, bias=False, dtype=dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.again(self.blocks[0](self.up(self.embed(ids))))
        out: torch.Tensor = self.head(self.blocks[1](x))
        return out


def toy(dtype: torch.dtype) -> Toy:
    model = Toy(dtype)
    model.head.weight = model.embed.weight
    return model


def settle(model: nn.Module) -> list[str]:
    """Have ours for all layers, and return what was given up for them."""
    notes: list[str] = []
    for layer in replaced(model).modules():
        if isinstance(layer, Layer):
            layer.settle()
        note = layer.weight.note if isinstance(layer, Linear) else None
        notes += [note] if note and note not in notes else []
    return notes


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@torch.inference_mode()
def test_every_linear_of_a_model_is_replaced(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = toy(dtype)
    before = copy.deepcopy(model)
    settle(model)
    assert not [x for x in model.modules() if isinstance(x, nn.Linear)]
    assert model.again is model.blocks[0]
    ids = torch.arange(50)
    assert torch.equal(model.embed(ids), before.embed(ids))
    torch.testing.assert_close(model(ids), before(ids), rtol=0.02, atol=0.02)


def test_packed_weights_are_not_kept(needs_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where the processor has AVX512_BF16.
    monkeypatch.setattr(plain, "form_of", lambda device, dtype: (packed.PackedWeight, None))
    model = toy(BF16)
    kept = weakref.ref(model.embed.weight)
    dropped: list[weakref.ref[Any]] = [
        weakref.ref(model.up.weight),
        weakref.ref(model.again.weight),
    ]
    settle(model)
    gc.collect()
    assert kept() is not None
    assert [x() for x in dropped] == [None, None]


@NEEDS_AVX512_BF16
def test_what_was_given_up_is_said(form: str) -> None:
    notes = settle(toy(BF16))
    wanted = {
        "kernel": [],
        "onednn": ["linear layers run slower, through oneDNN: no C compiler"],
        "torch": ["linear layers run slowest, through plain torch: no C compiler"],
    }
    assert len(notes) == len(wanted[form])
    assert all(note.startswith(x) for note, x in zip(notes, wanted[form], strict=True))
    assert settle(toy(torch.float32)) == []

"""The fused decoder's kernels alone, against plain torch in float32 on fresh random numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton", reason="the package triton is not installed")

from benchmarks import gpu_kernels
from tests.helpers.kv_oracle import SCALED
from workers.attention.cache import PagedCache
from workers.attention.kv_codes import CODES, KvCodes, encode
from workers.attention.triton_paged import code_number, code_scales
from workers.decoder import triton_kernels as kernels
from workers.kernels import device_linear
from workers.kernels.device_linear import GEMV_ROWS, NARROW_ROWS, DeviceLinear, GatedLinear

EXACT = 1e-4
HALVES = (torch.bfloat16, torch.float16)
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


ROUNDED = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of a number, what a dtype may take away; Triton's interpreter cuts off."""


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for the rounding to the dtype of what was found."""
    limit = EXACT + expected.abs() * ROUNDED[found.dtype]
    return bool(((found.float() - expected).abs() <= limit).all())


@pytest.fixture(autouse=True)
def fresh() -> None:
    print("seed", torch.seed())  # shown where a test fails


def normal(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape).to(device, dtype)


def linears(
    device: str, dtype: torch.dtype, n: int, k: int, rows: int, bias: bool
) -> tuple[DeviceLinear, torch.Tensor, torch.Tensor]:
    """A layer, what goes in, and what should come out but for rounding."""
    weight, x = normal(device, dtype, n, k), normal(device, dtype, rows, k)
    added = normal(device, dtype, n) if bias else None
    expected = functional.linear(
        x.double(), weight.double(), None if added is None else added.double()
    )
    return DeviceLinear(weight, added), x, expected.float()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [
        (1, 48, 48),
        pytest.param(3, 31, 2100, marks=pytest.mark.full),
        (4, 20, 30),
        (5, 70, 1100),
        (32, 130, 72),
    ],
)
def test_products_of_few_rows_are_added_up_in_float32(
    device: str, dtype: torch.dtype, rows: int, n: int, k: int
) -> None:
    layer, x, expected = linears(device, dtype, n, k, rows, bias=rows != 4)
    parts, whole = layer.parts(x), layer.whole(x)
    assert parts.dtype == whole.dtype == torch.float32
    limit = EXACT * k**0.5 / 8
    assert (parts.sum(0) - expected).abs().max() < limit
    assert (whole - expected).abs().max() < limit


def test_the_sum_is_shared_by_programs_where_they_are_few() -> None:
    assert device_linear.parts_of(70, 1100) == 4
    # Of an 8-billion-parameter Llama: queries, keys and values; output; down; head.
    shapes = [(6144, 4096), (4096, 4096), (4096, 14336), (128256, 4096)]
    assert [device_linear.parts_of(*shape) for shape in shapes] == [4, 4, 4, 1]


def test_many_rows_are_torchs(device: str) -> None:
    for dtype, rows in ((torch.float32, GEMV_ROWS + 1), (torch.bfloat16, NARROW_ROWS + 1)):
        layer, x, expected = linears(device, dtype, 48, 64, rows, bias=True)
        (only,) = layer.parts(x)
        assert only.dtype == dtype
        assert torch.equal(only, functional.linear(x, layer.weight, layer.bias))
        whole = layer.whole(x)
        assert whole.dtype == torch.float32
        assert (whole - expected).abs().max() < (EXACT if dtype is torch.float32 else 0.3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float32), (7, torch.bfloat16)])
def test_gate_and_up_meet_in_one_kernel(
    device: str, activation: str, rows: int, dtype: torch.dtype
) -> None:
    held_to_gated(device, activation, rows, dtype, bias=True)


def test_gate_and_up_of_many_rows(device: str) -> None:
    for rows, dtype in ((NARROW_ROWS + 8, torch.bfloat16), (GEMV_ROWS + 1, torch.float32)):
        held_to_gated(device, "silu", rows, dtype, bias=False)


def held_to_gated(device: str, activation: str, rows: int, dtype: torch.dtype, bias: bool) -> None:
    n, k = 37, 56
    (gate, x, gates), (up, _, _) = (linears(device, dtype, n, k, rows, bias) for _ in range(2))
    ups = functional.linear(
        x.float(), up.weight.float(), None if up.bias is None else up.bias.float()
    )
    found = GatedLinear((gate.weight, gate.bias), (up.weight, up.bias), activation)(x)
    assert found.dtype == dtype
    expected = ACTIVATIONS[activation](gates) * ups
    limit = EXACT if dtype is torch.float32 else 0.04
    assert ((found.float() - expected).abs() / (1 + expected.abs())).max() < limit


@pytest.mark.parametrize("rows", [4, 20])
def test_a_row_has_the_same_bits_beside_any_others(device: str, rows: int) -> None:
    layer, x, _ = linears(device, torch.bfloat16, 40, 600, rows, bias=True)
    others = torch.randn_like(x) * 50
    others[1] = x[1]
    assert torch.equal(layer.parts(x)[:, 1], layer.parts(others)[:, 1])


def normed(x: torch.Tensor, norm: torch.Tensor, eps: float) -> torch.Tensor:
    return norm * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("parts", [0, 1, 3])
@pytest.mark.parametrize(("y_norm", "some"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_and_norm(
    device: str, parts: int, y_norm: bool, some: bool, dtype: torch.dtype
) -> None:
    n_tokens, size, scale, eps = 3, 48, 0.7, 1e-3
    residual = normal(device, torch.float32, n_tokens, size)
    y = normal(device, torch.float32, max(1, parts), n_tokens, size)
    first, second = (normal(device, torch.float32, size) for _ in range(2))
    wanted = torch.tensor([2, 0, 2], device=device)
    summed = y.sum(0)
    added = normed(summed, first, eps) if y_norm else summed
    expected = residual + scale * added if parts else residual.clone()
    before, out = residual.clone(), torch.empty((3, size), dtype=dtype, device=device)
    kernels.add_norm[(3,)](
        out, residual, y, wanted, first, second, scale, eps, n_tokens, SIZE=size, WIDTH=64,
        PARTS=parts, Y_NORM=y_norm, WANTED=some,
    )  # fmt: skip
    assert (residual - (before if some else expected)).abs().max() < EXACT
    result = normed(expected[wanted] if some else expected, second, eps)
    assert near(out, result)


def test_angles_are_exact_far_into_a_text(device: str) -> None:
    positions = torch.tensor([0, 3, 1000, 131071, 900001])
    frequencies, scales = torch.rand(2, 12), torch.tensor([1.0, 1.3])
    frequencies[:, 0] = 1.0
    turns = torch.empty((2, 5, 2, 12), device=device)
    on_device = [one.to(device) for one in (positions, frequencies, scales)]
    kernels.turn[(5, 2)](turns, *on_device, 0, HALF=12, WIDTH=16)
    angles = (positions.float()[None, :, None] * frequencies[:, None, :]).double()
    expected = torch.stack((angles.cos(), angles.sin()), 2) * scales[:, None, None, None]
    assert (turns.cpu() - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "dim", "rotary", "head_norms", "parts"),
    [(5, 1, 24, 24, False, 2), (4, 4, 24, 12, True, 1), (6, 3, 16, 0, False, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_keys_and_values_go_where_they_belong(
    device: str,
    n_heads: int,
    n_kv_heads: int,
    dim: int,
    rotary: int,
    head_norms: bool,
    parts: int,
    dtype: torch.dtype,
) -> None:
    n_tokens, eps, half = 3, 1e-3, rotary // 2
    n_all = n_heads + 2 * n_kv_heads
    qkv = normal(device, torch.float32, parts, n_tokens, n_all * dim)
    norms = normal(device, torch.float32, 2, dim)
    turns = normal(device, torch.float32, n_tokens, 2, max(1, half))
    slots = torch.tensor([9, -1, 2], dtype=torch.int32, device=device)
    cache = PagedCache(1, 3, 4, n_kv_heads, dim, dtype, device)
    (keys,), (values,) = cache.keys, cache.values
    for pool in (keys, values):
        pool.fill_(-1)
    q = torch.empty((n_tokens, n_heads, dim), dtype=dtype, device=device)
    kernels.place[(n_tokens, 2)](
        q, keys, values, qkv, slots, turns, norms, *code_scales(cache, 0, slots), eps, n_tokens,
        N_HEADS=n_heads, N_KV_HEADS=n_kv_heads, DIM=dim, WIDTH=32, BLOCK_SIZE=4, ROTARY=rotary,
        NORMED=head_norms, PARTS=parts, HEADS=8, CODES=0,
    )  # fmt: skip
    heads = qkv.sum(0).view(n_tokens, n_all, dim)
    turned, value = heads.split([n_heads + n_kv_heads, n_kv_heads], 1)
    if head_norms:
        weights = norms.repeat_interleave(torch.tensor([n_heads, n_kv_heads], device=device), 0)
        turned = normed(turned, weights, eps)
    low, high, rest = turned.split([half, half, dim - rotary], 2)
    cos, sin = turns[:, :1, :half], turns[:, 1:, :half]
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin, rest), 2)
    query, key = turned.split([n_heads, n_kv_heads], 1)
    assert near(q, query)
    for pool, new in ((keys, key), (values, value)):
        assert near(pool[2, :, 1], new[0])
        assert near(pool[0, :, 2], new[2])
        pool[2, :, 1] = pool[0, :, 2] = -1
        assert (pool == -1).all()


@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_keys_and_values_become_codes(device: str, codes: KvCodes) -> None:
    n_tokens, n_heads, n_kv_heads, dim = 3, 5, 2, 24
    qkv = normal(device, torch.float32, 1, n_tokens, (n_heads + 2 * n_kv_heads) * dim)
    norms = normal(device, torch.float32, 2, dim)
    turns = normal(device, torch.float32, n_tokens, 2, dim // 2)
    slots = torch.tensor([9, -1, 2], dtype=torch.int32, device=device)
    kept = {}
    for one in (None, codes):
        cache = PagedCache(1, 3, 4, n_kv_heads, dim, torch.float32, device, one)
        cache.scales = [SCALED]
        for pool in cache.keys + cache.values + cache.row_scales:
            pool.fill_(1)
        q = torch.empty((n_tokens, n_heads, dim), device=device)
        kernels.place[(n_tokens, 2)](
            q, cache.keys[0], cache.values[0], qkv, slots, turns, norms,
            *code_scales(cache, 0, slots), 1e-3, n_tokens, N_HEADS=n_heads, N_KV_HEADS=n_kv_heads,
            DIM=dim, WIDTH=32, BLOCK_SIZE=4, ROTARY=dim, NORMED=True, PARTS=1, HEADS=8,
            CODES=code_number(cache),
        )  # fmt: skip
        kept[one] = cache.pools(0)
    for numbers, coded in zip(kept[None], kept[codes], strict=True):
        expected, scales = encode(numbers.stored, codes, coded.scale)
        for block, offset in ((2, 1), (0, 2)):
            assert torch.equal(coded.stored[block, :, offset], expected[block, :, offset])
            if coded.scales is not None:
                assert torch.equal(coded.scales[block, :, offset], scales[block, :, offset])
                coded.scales[block, :, offset] = 1
            coded.stored[block, :, offset] = 1
        assert (coded.stored == 1).all()
        assert coded.scales is None or (coded.scales == 1).all()


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_logits_are_scaled_and_bounded(device: str, cap: float) -> None:
    logits = normal(device, torch.float32, 3, 97) * 20
    scaled = logits * 0.4
    kernels.bound[(3,)](logits, logits.numel(), 0.4, cap, CAPPED=cap != 0, SIZE=128)
    assert (logits - (cap * (scaled / cap).tanh() if cap else scaled)).abs().max() < EXACT


def test_what_the_benchmark_times_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MOST_LAYERS", 1)
    sizes = gpu_kernels.Sizes(16, 12, 2, 1, 16, 20)
    for rows, dtype, used in ((1, torch.float32, "gemv*"), (5, torch.bfloat16, "narrow*")):
        n, k, activation = sizes.products()["gate and up"]
        works = list(gpu_kernels.products(n, k, activation, rows, dtype, device, 0))
        assert used in [name for name, *_ in works]
        for _, n_layers, run in (*works, *gpu_kernels.others(sizes, rows, dtype, device)):
            assert n_layers in (1, 2)
            run()

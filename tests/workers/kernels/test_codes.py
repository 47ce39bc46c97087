"""Products of codes with activations, as they are and in int8, against the same in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from workers import native
from workers.kernels import packed
from workers.kernels.codes import CodedWeight, PackedCodes

BF16 = torch.bfloat16
SHAPES = [(48, 64), (100, 96), (17, 40), (1, 32), (49, 200)]
N_ROWS = [1, 2, 9]
TABLES = {"uneven": torch.linspace(-1, 1, 16) ** 3}


@pytest.fixture(params=["this processor's", "portable"], autouse=True)
def instructions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fresh_kernels: None
) -> None:
    """The kernel with this processor's instructions, and the same without any but vectors."""
    if request.param == "portable":
        monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DPORTABLE_CODES"))
    try:
        packed.kernel()
    except native.NativeUnavailable as error:
        pytest.skip(str(error))


def codes(
    n: int,
    k: int,
    bits: int,
    group: int | None = None,
    scales: torch.dtype = torch.float32,
    zeros: bool = False,
    bias: bool = False,
) -> CodedWeight:
    torch.manual_seed(n * 10_000 + k)
    group = group or k
    groups = -(-k // group)
    return CodedWeight(
        torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8),
        (torch.rand(n, groups) / 100).to(scales),
        bits,
        group,
        torch.randint(0, 1 << bits, (n, groups), dtype=torch.uint8) if zeros else None,
        torch.randn(n) if bias else None,
    )


def of_kind(kind: str, n: int, k: int, group: int | None, scales: torch.dtype) -> CodedWeight:
    if kind in TABLES:
        made = codes(n, k, 4, group, scales, bias=n > 17)
        return dataclasses.replace(made, kind="table", table=TABLES[kind])
    if kind == "e4m3":
        made = codes(n, k, 8, group, scales, bias=n > 17)
        numbers = torch.randn(n, k).to(torch.float8_e4m3fn)
        return dataclasses.replace(made, kind=kind, codes=numbers.view(torch.uint8))
    return codes(n, k, int(kind[0]), group, scales, "zeros" in kind, bias=n > 17)


def with_minimums(n: int, k: int, bits: int, group: int, blocks: int = 0) -> CodedWeight:
    """Centered, as those of a model are; with `blocks`, scales in two levels, so many of each."""
    made = codes(n, k, bits, group, torch.float16, bias=n > 17)
    middle = (1 << bits) / 2 + torch.rand(made.scales.shape)
    if not blocks:
        return dataclasses.replace(made, minimums=(-made.scales * middle).half())
    factors = (torch.rand(n, blocks) / 1000).half()
    scales = torch.randint(1, 64, made.scales.shape, dtype=torch.int8)
    return dataclasses.replace(
        made,
        scales=scales,
        minimums=scales // 2 + 1,
        factors=factors,
        minimum_factors=-(factors * (1 << bits)),
    )


def dense(weight: CodedWeight) -> torch.Tensor:
    """float32 [n, k]: what it stands for."""
    k = weight.codes.shape[1]

    def wide(of_groups: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
        numbers = of_groups.float().repeat_interleave(weight.group, 1)[:, :k]
        if factors is None:
            return numbers
        return numbers * factors.float().repeat_interleave(k // factors.shape[1], 1)

    if weight.kind == "e4m3":
        values = weight.codes.view(torch.float8_e4m3fn).float()
    elif weight.table is not None:
        values = weight.table[weight.codes.long()]
    else:
        middle = 1 << (weight.bits - 1) if weight.minimums is None else 0
        values = weight.codes.float() - (middle if weight.zeros is None else wide(weight.zeros))
    columns = values * wide(weight.scales, weight.factors)
    if weight.minimums is not None:
        columns += wide(weight.minimums, weight.minimum_factors)
    if weight.order is not None:
        columns = torch.empty_like(columns).index_copy_(1, weight.order.long(), columns)
    return columns


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """What activations in int8 stand for, in float64: a part of a row has a scale of its own."""
    k, part = x.shape[1], 64 if group % 64 == 0 or group >= x.shape[1] else 32
    parts = functional.pad(x.float(), (0, -k % part)).view(-1, part)
    largest = parts.abs().amax(1, keepdim=True)
    inverse = torch.where(largest > 0, torch.full_like(largest, 127.0) / largest, largest)
    numbers = torch.round(parts * inverse).double() * (largest / 127).double()
    return numbers.view(len(x), -1)[:, :k]


def assert_product(out: torch.Tensor, x: torch.Tensor, weight: CodedWeight) -> None:
    """`out` is the exact result but for the float32 sums' error and one rounding to its dtype."""
    matrix = dense(weight).double()
    bias = None if weight.bias is None else weight.bias.double()
    wanted = functional.linear(rounded(x, weight.group), matrix, bias)
    size = functional.linear(rounded(x, weight.group).abs(), matrix.abs())
    unit = 2**-8 if out.dtype is BF16 else 2**-22
    assert out.shape == wanted.shape
    assert ((out.double() - wanted).abs() <= wanted.abs() * unit + size * 2**-20 + 1e-6).all()


def assert_unrounded(out: torch.Tensor, x: torch.Tensor, weight: CodedWeight) -> None:
    """As `assert_product`, of activations as they are."""
    native_bf16 = "-DPORTABLE_CODES" not in native.FLAGS and packed.kernel().multiplies_bf16()
    if out.dtype is BF16 and weight.table is not None and native_bf16:
        weight = dataclasses.replace(weight, table=weight.table.bfloat16().float())
    matrix = dense(weight).double()
    bias = None if weight.bias is None else weight.bias.double()
    wanted = functional.linear(x.double(), matrix, bias)
    size = functional.linear(x.double().abs(), matrix.abs())
    unit = 2**-8 if out.dtype is BF16 else 2**-22
    assert ((out.double() - wanted).abs() <= wanted.abs() * unit + size * 2**-18 + 1e-6).all()


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("kind", ["4", "4 with zeros", "8", "8 with zeros", *TABLES, "e4m3"])
def test_it_multiplies_activations_as_they_are(kind: str, dtype: torch.dtype) -> None:
    for n, k in SHAPES:
        for group, scales in ((32, torch.float16), (64, BF16), (None, torch.float32)):
            weight = of_kind(kind, n, k, group, scales)
            layer = PackedCodes(weight, dtype)
            for rows in (*N_ROWS, 150):
                x = torch.randn(rows, k).to(dtype)
                assert_unrounded(layer.apply(x), x, weight)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("bits", [2, 3, 5, 6])
def test_codes_of_other_bits_and_small_groups(bits: int, dtype: torch.dtype) -> None:
    for n, k in SHAPES:
        for group in (16, 32, None):
            weight = codes(n, k, bits, group, torch.float16, bias=n > 17)
            layer = PackedCodes(weight, dtype)
            for rows in (*N_ROWS, 150):
                x = torch.randn(rows, k).to(dtype)
                assert_unrounded(layer.apply(x), x, weight)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(
    ("bits", "group", "blocks"), [(4, 32, 0), (5, 32, 0), (4, 32, 2), (5, 32, 1), (2, 16, 2)]
)
def test_groups_may_have_minimums(bits: int, group: int, blocks: int, dtype: torch.dtype) -> None:
    for n, k in ((48, 64), (100, 192), (17, 256)):
        weight = with_minimums(n, k, bits, group, blocks)
        layer = PackedCodes(weight, dtype)
        for rows in (*N_ROWS, 150):
            x = torch.randn(rows, k).to(dtype)
            assert_unrounded(layer.apply(x), x, weight)


@pytest.mark.parametrize(
    "weight",
    [
        *(codes(100, 64, bits, 16, torch.float16) for bits in (2, 3, 4, 5, 6, 8)),
        codes(49, 200, 8),
        codes(49, 96, 4, 32, BF16, zeros=True),
        with_minimums(100, 96, 4, 32),
        with_minimums(100, 192, 5, 32, 2),
        with_minimums(17, 256, 2, 16, 2),
    ],
    ids=lambda one: f"{one.bits}-{one.group}-{one.block}",
)
def test_outputs_are_looked_up_bit_for_bit(weight: CodedWeight) -> None:
    n = len(weight.codes)
    ids = torch.tensor([[0, n - 1], [n // 2, 3]])
    layer = PackedCodes(weight, torch.float32)
    assert torch.equal(layer.rows(ids), dense(weight)[ids])


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_weights_of_other_forms_may_be_below(dtype: torch.dtype) -> None:
    parts = [with_minimums(40, 256, 4, 32, 1), codes(17, 256, 6, 16), codes(50, 256, 8, bias=True)]
    first, *others = (PackedCodes(one, dtype) for one in parts)
    for one in others:
        first.append(one)
    x = torch.randn(9, 256).to(dtype)
    apart = [PackedCodes(one, dtype).apply(x) for one in parts]
    assert torch.equal(first.apply(x), torch.cat(apart, 1))


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 5, 8])
def test_it_multiplies_what_the_codes_stand_for(bits: int, zeros: bool, dtype: torch.dtype) -> None:
    for n, k in SHAPES:
        for group, scales in ((32, torch.float16), (64, BF16), (None, torch.float32)):
            weight = codes(n, k, bits, group, scales, zeros and bits != 5, bias=n > 17)
            layer = PackedCodes(weight, dtype, round_inputs=True)
            for rows in N_ROWS:
                x = torch.randn(rows, k).to(dtype)
                assert_product(layer.apply(x), x, weight)


@pytest.mark.parametrize(("bits", "blocks"), [(4, 0), (4, 2), (5, 0), (5, 1), (8, 0)])
def test_it_multiplies_groups_with_minimums(bits: int, blocks: int) -> None:
    for n, k in ((48, 64), (100, 192), (17, 256)):
        weight = with_minimums(n, k, bits, 32, blocks)
        layer = PackedCodes(weight, torch.float32, round_inputs=True)
        for rows in N_ROWS:
            x = torch.randn(rows, k)
            assert_product(layer.apply(x), x, weight)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_the_largest_codes_do_not_overflow(bits: int) -> None:
    k = 4096
    for code in (0, (1 << bits) - 1):
        all_equal = torch.full((24, k), code, dtype=torch.uint8)
        weight = CodedWeight(all_equal, torch.ones(24, 1), bits, k)
        for sign in (-1.0, 1.0):
            x = torch.full((5, k), sign)
            assert_product(
                PackedCodes(weight, torch.float32, round_inputs=True).apply(x), x, weight
            )


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("round_inputs", [False, True])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    round_inputs: bool, bits: int, dtype: torch.dtype
) -> None:
    weight = codes(100, 96, bits, 32, zeros=True, bias=True)
    if bits == 5:
        weight = with_minimums(100, 96, bits, 32)
    layer = PackedCodes(weight, dtype, round_inputs=round_inputs)
    x = torch.randn(170, 96).to(dtype)
    alone = torch.cat([layer.apply(row[None]) for row in x])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(layer.apply(x), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(layer.apply(x[5:12]), alone[5:12])


@pytest.mark.parametrize("round_inputs", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gate_and_up(bits: int, round_inputs: bool) -> None:
    gate, up = (codes(n, 64, bits, 32, bias=True) for n in (40, 40))
    up.codes.copy_(up.codes.flip(0))
    layer = PackedCodes(gate, torch.float32, up, "silu", round_inputs)
    x = torch.randn(7, 64)
    apart = [
        PackedCodes(one, torch.float32, round_inputs=round_inputs).apply(x) for one in (gate, up)
    ]
    wanted = functional.silu(apart[0]) * apart[1]
    torch.testing.assert_close(layer.apply(x), wanted, rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_is_zero_and_one_that_is_not_finite_spoils_no_other() -> None:
    weight = codes(48, 64, 8)
    x = torch.randn(4, 64)
    x[0] = 0
    x[1, 3], x[2, 5] = torch.inf, torch.nan
    out = PackedCodes(weight, torch.float32, round_inputs=True).apply(x)
    assert (out[0] == 0).all()
    assert out[1:3].isnan().all()
    assert_product(out[3:], x[3:], weight)


@pytest.mark.parametrize("round_inputs", [False, True])
def test_inputs_in_another_order(round_inputs: bool) -> None:
    weight = codes(49, 96, 4, 32, torch.float16, zeros=True)
    order = torch.randperm(96).int()
    x = torch.randn(5, 96).to(BF16)
    in_order = PackedCodes(weight, BF16, round_inputs=round_inputs).apply(x[:, order])
    weight = dataclasses.replace(weight, order=order)
    layer = PackedCodes(weight, BF16, round_inputs=round_inputs)
    assert torch.equal(layer.apply(x), in_order)
    if not round_inputs:
        assert_unrounded(layer.apply(x), x, weight)


def test_a_group_that_the_kernel_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 32 inputs, not 24"):
        PackedCodes(codes(48, 64, 4, 24), BF16)
    with pytest.raises(ValueError, match="a multiple of 32 inputs, not 16"):
        PackedCodes(codes(48, 64, 4, 16), BF16, round_inputs=True)
    with pytest.raises(ValueError, match="codes are of 2, 3, 4, 5, 6, 8 bits, not 7"):
        PackedCodes(codes(48, 64, 7, 32), BF16)
    with pytest.raises(ValueError, match="codes are of 4, 8 bits, not 5"):
        PackedCodes(codes(48, 64, 5, 32, zeros=True), BF16)
    with pytest.raises(ValueError, match="codes that are integers, not e4m3"):
        PackedCodes(of_kind("e4m3", 48, 64, 32, BF16), BF16, round_inputs=True)


@pytest.mark.parametrize(("bits", "most"), [(8, 1.02), (6, 0.82), (5, 0.69), (4, 0.57), (3, 0.44)])
def test_memory(bits: int, most: float) -> None:
    """In bytes for each weight; of groups of 32 with scales of 16 bits."""
    n, k = 576, 1536
    layer = PackedCodes(codes(n, k, bits, 32 if bits < 8 else None, torch.float16), BF16)
    assert layer.bytes <= most * n * k

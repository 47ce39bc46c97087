"""Keys and values as codes: the codes themselves, and attention over them, on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.kv_oracle import (
    SCALED,
    coded,
    every_code,
    listed,
    nearest,
    numbers_of_every_code,
)
from tests.helpers.paged_batch import Shape, largest_difference
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.gather import TorchAttention
from workers.attention.kv_codes import (
    CODES,
    E4M3,
    E5M2,
    INT8,
    UNSCALED,
    KvCodes,
    KvScales,
    decode,
    encode,
)
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.native import NativeAttention
from workers.attention.registry import Backend

FLOATS = [E4M3, E5M2]
BACKENDS = [NativeAttention, TorchAttention]
ODD = [500.0, 464.0, 448.0, 61439.0, 61440.0, 7e4, 3e38, 0.0, -0.0, 1e-45, -1e-30]


def written(
    backend: Backend, codes: KvCodes, x: torch.Tensor, scales: KvScales = UNSCALED
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the codes and the scales of rows that a backend stores of the keys x [n, dim], one
    head of each token; of values of half of them."""
    n, dim = x.shape
    cache = PagedCache(1, n, 1, 1, dim, x.dtype, codes=codes)
    cache.scales = [scales]
    table = torch.arange(n, dtype=torch.int32)
    none = torch.empty(0, 0, dtype=torch.int32)
    context = AttentionContext(
        cache, torch.arange(n), 0, none, none.flatten(), [Prefill(0, n, n, table)]
    )
    attention = backend(AttentionShape(1, 1, dim, x.dtype))
    attention.forward(AttentionLayer(0, 1.0), x[None, None], x[None, None], x[None, None], context)
    keys, values = cache.pools(0)
    if scales.key == scales.value:
        assert torch.equal(keys.stored, values.stored)
    return keys.stored.view(n, dim), None if keys.scales is None else keys.scales.view(n)


def hard(codes: KvCodes, dtype: torch.dtype) -> torch.Tensor:
    """Return numbers on, just below and just above what separates the numbers of an 8-bit float,
    and some at random: float32 [n, 16]."""
    numbers = listed(codes)
    finite = np.sort(numbers[np.isfinite(numbers)])
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(middles, np.float32(far)) for far in (-np.inf, np.inf)]
    some = np.random.default_rng(1).standard_normal(2048) * np.exp2(np.linspace(-20, 16, 2048))
    odd = [sign * x for x in ODD for sign in (1, -1)]
    all_of_them = np.concatenate([finite, middles, *around, some, odd])
    padded = np.pad(all_of_them, (0, -len(all_of_them) % 16)).astype(np.float32)
    return torch.from_numpy(padded).reshape(-1, 16).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_a_code_is_the_number_that_its_format_says(
    backend: Backend, codes: KvCodes, dtype: torch.dtype
) -> None:
    found = every_code(backend, codes, dtype, "cpu")
    torch.testing.assert_close(
        found, numbers_of_every_code(codes, dtype), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes", FLOATS, ids=lambda one: one.name)
def test_a_number_becomes_the_nearest_code(
    backend: Backend, codes: KvCodes, dtype: torch.dtype
) -> None:
    x = hard(codes, dtype)
    found, _ = written(backend, codes, x)
    assert torch.equal(found, torch.from_numpy(nearest(x.float().numpy(), codes)))
    torch_says = x.float() if codes is E5M2 else x.float().clamp(-448, 448)
    assert torch.equal(found, torch_says.to(codes.dtype).view(torch.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes", FLOATS, ids=lambda one: one.name)
def test_a_number_is_divided_by_the_scale_of_its_layer(backend: Backend, codes: KvCodes) -> None:
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(2))
    found, _ = written(backend, codes, x, KvScales(SCALED.key, SCALED.key))
    assert torch.equal(found, coded(x, codes, SCALED.key)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_has_a_scale_for_each_row(backend: Backend, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 48, generator=generator)
    x = (x * torch.logspace(-20, 20, 200)[:, None]).to(dtype)
    x[7] = 0.0
    x[8, 1:] = 0.0
    x[9] = torch.arange(48) - 20.5  # ties
    x[9, 0] = 127.0
    found, scales = written(backend, INT8, x)
    expected, of_rows = coded(x, INT8, 1.0)
    assert torch.equal(found, expected)
    assert scales is not None
    assert torch.equal(scales, of_rows[:, 0])
    assert int(found.min()) >= -127


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_what_is_not_a_number_stays_none(backend: Backend, codes: KvCodes) -> None:
    x = torch.ones(3, 16)
    x[0, 3], x[1, 4] = float("nan"), float("inf")
    found, scales = written(backend, codes, x)
    read = decode(found, 1.0 if scales is None else scales[:, None], codes, torch.float32)
    assert bool(read[0, 3].isnan())
    assert float(read[1, 4]) == 448.0 if codes is E4M3 else not bool(read[1, 4].isfinite())
    assert torch.equal(read[2], x[2]) or codes is INT8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("heads", "block_size", "dtype"),
    [
        ((9, 3, 64), 16, torch.float32),
        ((8, 1, 80), 4, torch.bfloat16),
        ((6, 2, 128), 16, torch.bfloat16),
        pytest.param((4, 4, 32), 1, torch.float32, marks=pytest.mark.full),
        pytest.param((14, 2, 48), 32, torch.bfloat16, marks=pytest.mark.full),
        pytest.param((64, 1, 16), 16, torch.float32, marks=pytest.mark.full),
        pytest.param((9, 3, 64), 16, torch.bfloat16, marks=pytest.mark.full),
        pytest.param((6, 2, 128), 16, torch.float32, marks=pytest.mark.full),
    ],
)
def test_attention_is_that_of_what_the_codes_stand_for(
    backend: Backend,
    codes: KvCodes,
    heads: tuple[int, int, int],
    block_size: int,
    dtype: torch.dtype,
) -> None:
    shape = Shape(*heads, block_size, dtype, codes=codes)
    if not codes.of_rows:
        shape.scales = SCALED
    decodes, prefills = [1, 15, 16, 17, 127, 128, 129, 300], [(1, 1), (40, 40), (33, 190), (1, 65)]
    limit = 2e-6 if dtype is torch.float32 else 0.02
    assert largest_difference(backend, shape, decodes, prefills) < limit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
@pytest.mark.parametrize(
    "rule",
    [
        {"window": 64},
        {"softcap": 20.0, "sinks": True},
        pytest.param({"window": 1}, marks=pytest.mark.full),
        pytest.param({"window": 5000}, marks=pytest.mark.full),
        pytest.param({"chunk": 7}, marks=pytest.mark.full),
        pytest.param({"slopes": True, "window": 9}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_windows_caps_and_sinks_are_as_without_codes(
    backend: Backend, codes: KvCodes, rule: dict[str, Any]
) -> None:
    shape = Shape(codes=codes)
    decodes, prefills = [1, 64, 65, 200, 400], [(70, 70), (70, 300)]
    assert largest_difference(backend, shape, decodes, prefills, **rule) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_a_bit_is_that_of_a_cache_of_the_numbers(codes: KvCodes, dtype: torch.dtype) -> None:
    """Alone, in a batch that shares its prefix, and in chunks of any size."""
    generator = torch.Generator().manual_seed(6)
    n_blocks, size, dim, length = 48, 16, 48, 300
    numbers = torch.randn(2, n_blocks, 2, size, dim, generator=generator).to(dtype)
    coded_cache = PagedCache(1, n_blocks, size, 2, dim, dtype, codes=codes)
    plain_cache = PagedCache(1, n_blocks, size, 2, dim, dtype)
    if not codes.of_rows:
        coded_cache.scales = [SCALED]
    pools = zip(coded_cache.pools(0), plain_cache.pools(0), numbers, strict=True)
    for pool, plain, x in pools:
        stored, scales = encode(x, codes, pool.scale)
        pool.stored.copy_(stored)
        if pool.scales is not None:
            pool.scales.copy_(scales)
            scales = scales[..., None]
        plain.stored.copy_(decode(stored, scales, codes, dtype))
    q = torch.randn(1, 6, length, dim, generator=generator).to(dtype)
    table = torch.arange(n_blocks, dtype=torch.int32)
    attention = NativeAttention(AttentionShape(6, 2, dim, dtype))

    def attended(cache: PagedCache, first: int, n: int, n_rows: int = 0) -> torch.Tensor:
        """Of the queries from `first` on, as a chunk or as `n_rows` equal decode rows."""
        rows = table.repeat(n_rows, 1)
        lengths = torch.full((n_rows,), first + 1, dtype=torch.int32)
        chunks = [] if n_rows else [Prefill(0, n, first + n, table)]
        slots = torch.zeros(n_rows or n, dtype=torch.int64)
        context = AttentionContext(cache, slots, n_rows, rows, lengths, chunks)
        given = q[:, :, first : first + n].repeat(1, 1, n_rows or 1, 1)
        return attention.forward(AttentionLayer(0, 0.2), given, None, None, context)

    for first, n, n_rows in ((0, length, 0), (130, 40, 0), (299, 1, 1), (299, 1, 5)):
        of_codes, of_numbers = (
            attended(cache, first, n, n_rows) for cache in (coded_cache, plain_cache)
        )
        assert torch.equal(of_codes, of_numbers)

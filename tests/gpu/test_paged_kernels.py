"""The Triton kernels of paged attention against plain attention in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.kv_oracle import SCALED, every_code, numbers_of_every_code
from tests.helpers.paged_batch import Shape, largest_difference

pytest.importorskip("triton", reason="the package triton is not installed")

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.device_batch import SPLIT
from workers.attention.gather import TorchAttention
from workers.attention.kv_codes import CODES, KvCodes, encode
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.registry import build
from workers.attention.triton_paged import SPLITS_AT_ONCE, TritonAttention

EXACT = 1e-5


def full(*values: Any) -> Any:
    """For the long version: the interpreter needs seconds for it."""
    return pytest.param(*values, marks=pytest.mark.full)


def difference(
    shape: Shape,
    decodes: list[int],
    prefills: list[tuple[int, int]],
    *,
    window: int = 0,
    softcap: float = 0.0,
    spread: float = 1.0,
    chunk: int = 0,
    sinks: bool = False,
    slopes: bool = False,
) -> float:
    return largest_difference(
        TritonAttention,
        shape,
        decodes,
        prefills,
        window=window,
        softcap=softcap,
        spread=spread,
        chunk=chunk,
        sinks=sinks,
        slopes=slopes,
    )


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "block_size"),
    [
        (9, 3, 64, 16),
        full(4, 4, 32, 1),
        (8, 1, 80, 256),
        full(6, 2, 128, 4),
        (14, 2, 20, 16),
        full(71, 1, 16, 20),
    ],
)
def test_a_mixed_batch_equals_each_sequence_alone(
    device: str, n_heads: int, n_kv_heads: int, head_dim: int, block_size: int
) -> None:
    shape = Shape(n_heads, n_kv_heads, head_dim, block_size, device=device)
    decodes, prefills = [1, 16, 17, 128, 300], [(1, 1), (33, 190), (1, 65)]
    assert difference(shape, decodes, prefills) < EXACT


@pytest.mark.parametrize("decodes", [[], [5], [SPLIT, SPLIT + 1, 3]])
def test_prefill_alone_and_decode_alone(device: str, decodes: list[int]) -> None:
    prefills = [] if decodes else [(200, 500)]
    assert difference(Shape(device=device), decodes, prefills) < EXACT


def test_more_splits_than_are_put_together_at_once(device: str) -> None:
    length = 2 * SPLIT * SPLITS_AT_ONCE + 300
    shape = Shape(2, 2, 16, 256, device=device)
    # Sums far apart: of the many groups of splits some raise the peak of those before.
    assert difference(shape, [length, 2, length - 7], [], spread=2.0) < 2 * EXACT


@pytest.mark.parametrize("window", [full(1), 7, 64, full(257), full(5000)])
def test_a_sliding_window_hides_what_is_further_back(device: str, window: int) -> None:
    decodes, prefills = [1, 64, 65, SPLIT + 4, 600], [(70, 70), (40, 300)]
    assert difference(Shape(device=device), decodes, prefills, window=window) < EXACT


@pytest.mark.parametrize("chunk", [full(1), 7, full(257), full(5000)])
def test_chunks_hide_what_is_before_them(device: str, chunk: int) -> None:
    decodes, prefills = [1, 64, 65, SPLIT + 4, 600], [(70, 70), (40, 300)]
    assert difference(Shape(device=device), decodes, prefills, chunk=chunk) < EXACT


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("name", ["sinks", "slopes"])
def test_each_head_has_its_own_sink_and_slope(device: str, name: str, window: int) -> None:
    shape = Shape(6, 2, 20, 16, device=device)
    decodes, prefills = [1, 65, SPLIT + 4, 600], [(3, 3), (40, 300)]
    assert difference(shape, decodes, prefills, window=window, **{name: True}) < EXACT


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_softcap_bounds_the_scores(device: str, spread: float) -> None:
    shape = Shape(device=device)
    limit = EXACT * max(spread, 1.0)
    assert difference(shape, [1, 130], [(20, 50)], softcap=20.0, spread=spread) < limit


def test_scores_far_apart_do_not_overflow(device: str) -> None:
    assert difference(Shape(device=device), [1, 300], [(50, 200)], spread=30.0) < 0.05


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_is_within_its_own_error(
    device: str, dtype: torch.dtype, limit: float
) -> None:
    shape = Shape(9, 3, 64, 16, dtype, device)
    assert difference(shape, [1, 64, 700], [(64, 64), (40, 400)]) < limit


def test_a_decode_row_does_not_depend_on_its_batch(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    cache = PagedCache(1, 160, 16, 2, 32, torch.float32, device)
    for pool in cache.keys + cache.values:
        pool.copy_(torch.randn(pool.shape, generator=generator))
    q, k, v = (torch.randn(1, h, 4, 32, generator=generator).to(device) for h in (6, 2, 2))
    tables = torch.arange(160, dtype=torch.int32).reshape(4, 40)
    lengths = torch.tensor([250, 130, 17, 600], dtype=torch.int32)
    slots = tables.long()[torch.arange(4), (lengths - 1) // 16] * 16 + (lengths - 1) % 16
    attention = TritonAttention(AttentionShape(6, 2, 32, torch.float32))
    layer = AttentionLayer(0, 1.0)

    def run(rows: slice) -> torch.Tensor:
        n = len(range(4)[rows])
        context = AttentionContext(cache, slots[rows], n, tables[rows], lengths[rows])
        query, key, value = (x[:, :, rows] for x in (q, k, v))
        return attention.forward(layer, query, key, value, context)

    together = run(slice(0, 4))
    for row in range(4):
        assert torch.equal(run(slice(row, row + 1)), together[:, row : row + 1])


def test_new_keys_and_values_are_in_the_cache_and_nothing_else_changed(device: str) -> None:
    cache = PagedCache(2, 3, 4, 3, 20, torch.float32, device)
    for pool in cache.keys + cache.values:
        pool.fill_(-1)
    q, k, v = (torch.randn(1, 3, 2, 20, device=device) for _ in range(3))
    slots = torch.tensor([9, 2])
    rows = torch.tensor([[2], [0]], dtype=torch.int32)
    context = AttentionContext(cache, slots, 2, rows, torch.tensor([2, 3], dtype=torch.int32))
    attention = TritonAttention(AttentionShape(3, 3, 20, torch.float32))
    found = attention.forward(AttentionLayer(1, 1.0), q, k, v, context)
    for pools, new in ((cache.keys, k), (cache.values, v)):
        assert torch.equal(pools[0], torch.full_like(pools[0], -1))
        assert torch.equal(pools[1][2, :, 1], new[0, :, 0])
        assert torch.equal(pools[1][0, :, 2], new[0, :, 1])
        assert int((pools[1] != -1).sum()) == 2 * 3 * 20
    written = [pool.clone() for pool in cache.keys + cache.values]
    again = attention.forward(AttentionLayer(1, 1.0), q, None, None, context)
    assert torch.equal(again, found)
    assert all(map(torch.equal, written, cache.keys + cache.values))


def test_strides_of_a_projection_that_holds_all_three_are_followed(device: str) -> None:
    qkv = torch.randn(1, 5, 8, 16, device=device)
    q, k, v = (part.transpose(1, 2) for part in qkv.split((4, 2, 2), dim=2))
    tables = torch.empty(0, 0, dtype=torch.int32)
    attention = TritonAttention(AttentionShape(4, 2, 16, torch.float32))
    outs = []
    for copied in (False, True):
        cache = PagedCache(1, 1, 16, 2, 16, torch.float32, device)
        context = AttentionContext(
            cache,
            torch.arange(5),
            0,
            tables,
            torch.empty(0, dtype=torch.int32),
            [Prefill(0, 5, 5, torch.zeros(1, dtype=torch.int32))],
        )
        query, key, value = (x.contiguous() if copied else x for x in (q, k, v))
        outs.append(attention.forward(AttentionLayer(0, 0.25), query, key, value, context))
    assert torch.equal(*outs)


def test_a_shape_that_does_not_fit_a_program_is_named_by_its_numbers() -> None:
    plain = build(TritonAttention, AttentionShape(17, 1, 512, torch.float32))
    assert type(plain) is TorchAttention
    (note,) = plain.notes
    assert "up to 16 heads of 512 numbers in torch.float32 to each" in note
    served = build(TritonAttention, AttentionShape(128, 1, 128, torch.bfloat16))
    assert type(served) is TritonAttention
    assert served.notes == []


def test_a_layer_may_have_fewer_heads_and_never_more(device: str) -> None:
    cache = PagedCache(1, 1, 4, 2, 16, torch.float32, device)
    row, one = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    context = AttentionContext(cache, torch.zeros(1, dtype=torch.int64), 1, row, one)
    q, k = (torch.randn(1, h, 1, 16, device=device) for h in (4, 2))
    layer = AttentionLayer(0, 1.0)
    found = [
        TritonAttention(AttentionShape(n_heads, 2, 16, torch.float32)).forward(
            layer, q, k, k, context
        )
        for n_heads in (8, 4)
    ]
    assert torch.equal(*found)
    few = TritonAttention(AttentionShape(2, 2, 16, torch.float32))
    with pytest.raises(ValueError, match="4 heads where 2 are the most"):
        few.forward(layer, q, k, k, context)
    with pytest.raises(ValueError, match="do not fit"):
        few.forward(layer, q, k.bfloat16(), k, context)


@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("heads", "dtype", "rule"),
    [
        ((9, 3, 64), torch.float32, {}),
        full((6, 2, 20), torch.bfloat16, {"window": 64}),
        full((8, 1, 80), torch.float16, {}),
        full((4, 4, 32), torch.float32, {"chunk": 7}),
        full((6, 2, 128), torch.float32, {"softcap": 20.0, "sinks": True}),
        full((6, 2, 128), torch.bfloat16, {"slopes": True}),
    ],
)
def test_attention_is_that_of_what_the_codes_stand_for(
    device: str,
    codes: KvCodes,
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    rule: dict[str, Any],
) -> None:
    """With codes as the oracle has them, bit for bit."""
    shape = Shape(*heads, 16, dtype, device, codes)
    if not codes.of_rows:
        shape.scales = SCALED
    decodes, prefills = [1, 17, SPLIT + 4], [(1, 1), (33, 190)]
    limit = {torch.float32: 2 * EXACT, torch.float16: 0.003, torch.bfloat16: 0.03}[dtype]
    assert difference(shape, decodes, prefills, **rule) < limit


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, for what is no number
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_a_code_is_the_number_that_its_format_says(
    device: str, codes: KvCodes, dtype: torch.dtype
) -> None:
    found = every_code(TritonAttention, codes, dtype, device)
    torch.testing.assert_close(
        found, numbers_of_every_code(codes, dtype), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_a_number_becomes_the_code_that_torch_gives_it(device: str, codes: KvCodes) -> None:
    """Those between two numbers, too large ones, and what is no number, among them."""
    bits = torch.arange(0, 2**32, 104_729 * 7).to(torch.int32)
    edges = [0.0, 464.0, 465.0, 61439.0, 61440.0, float("inf"), float("nan")]
    x = torch.cat((bits.view(torch.float32), torch.tensor(edges), -torch.tensor(edges)))
    dim = 32
    x = x[: len(x) // dim * dim].reshape(-1, dim).to(device)
    if codes.of_rows:
        x[:100] = torch.randn(100, dim, generator=torch.Generator().manual_seed(1)).to(device)
    n = len(x)
    cache = PagedCache(1, n, 1, 1, dim, torch.float32, device, codes)
    none = torch.empty(0, 0, dtype=torch.int32)
    table = torch.arange(n, dtype=torch.int32)
    context = AttentionContext(
        cache, torch.arange(n), 0, none, none.flatten(), [Prefill(0, n, n, table)]
    )
    attention = TritonAttention(AttentionShape(1, 1, dim, torch.float32))
    given = x[None, None]
    attention.forward(AttentionLayer(0, 1.0), given, given, given, context)
    for pool in cache.pools(0):
        expected, scales = encode(x, codes, 1.0)
        assert torch.equal(pool.stored.view(n, dim), expected)
        if pool.scales is not None:
            assert torch.equal(pool.scales.view(n).nan_to_num(-1.0), scales.nan_to_num(-1.0))

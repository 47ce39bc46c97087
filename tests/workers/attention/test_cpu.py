"""Paged attention on a CPU against plain attention, sequence by sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.paged_batch import Shape, largest_difference
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionLayer, AttentionShape, AttentionWindow
from workers.attention.native import NativeAttention
from workers.attention.paged import PagedAttention, paged_attention
from workers.attention.registry import Backend, build

ANY = AttentionWindow()


@pytest.fixture(params=[NativeAttention, TorchAttention], scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim"),
    [(9, 3, 64), (4, 4, 32), (8, 1, 80), (6, 2, 128), (14, 2, 48), (71, 1, 16)],
)
def test_a_mixed_batch_equals_each_sequence_alone(
    backend: Backend, n_heads: int, n_kv_heads: int, head_dim: int, block_size: int
) -> None:
    if n_heads == 71 and backend is NativeAttention:
        n_heads = 64
    shape = Shape(n_heads, n_kv_heads, head_dim, block_size)
    difference = largest_difference(
        backend, shape, [1, 15, 16, 17, 127, 128, 129, 300], [(1, 1), (40, 40), (33, 190), (1, 65)]
    )
    assert difference < 2e-6


@pytest.mark.parametrize("decodes", [[], [5], [1500, 3]])
def test_prefill_alone_and_decode_alone(backend: Backend, decodes: list[int]) -> None:
    prefills = [] if decodes else [(200, 1400)]
    assert largest_difference(backend, Shape(), decodes, prefills) < 2e-6


@pytest.mark.parametrize("window", [1, 7, 64, 128, 5000])
def test_a_sliding_window_hides_what_is_further_back(backend: Backend, window: int) -> None:
    decodes, prefills = [1, 64, 65, 200, 400], [(70, 70), (70, 300)]
    assert largest_difference(backend, Shape(), decodes, prefills, window=window) < 2e-6


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_softcap_bounds_the_scores(backend: Backend, spread: float) -> None:
    difference = largest_difference(
        backend, Shape(), [1, 130], [(20, 50)], softcap=20.0, spread=spread
    )
    assert difference < 1e-5 * max(spread, 1.0)


@pytest.mark.parametrize("chunk", [1, 7, 128, 5000])
def test_chunks_hide_what_is_before_them(backend: Backend, chunk: int) -> None:
    decodes, prefills = [1, 64, 65, 200, 400], [(70, 70), (70, 300)]
    assert largest_difference(backend, Shape(), decodes, prefills, chunk=chunk) < 2e-6


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("name", ["sinks", "slopes"])
@pytest.mark.parametrize("shape", [Shape(), Shape(6, 6, 16), Shape(8, 1, 48, 4)])
def test_each_head_has_its_own_sink_and_slope(
    backend: Backend, shape: Shape, name: str, window: int
) -> None:
    decodes, prefills = [1, 130, 400], [(3, 3), (50, 300)]
    difference = largest_difference(
        backend, shape, decodes, prefills, window=window, **{name: True}
    )
    assert difference < 2e-6


@pytest.mark.parametrize("name", ["sinks", "slopes", "chunk"])
def test_bfloat16_has_sinks_slopes_and_chunks_too(backend: Backend, name: str) -> None:
    shape = Shape(8, 2, 64, 16, torch.bfloat16)
    decodes, prefills = [1, 64, 700], [(64, 64), (40, 400)]
    rule: dict[str, Any] = {name: 9 if name == "chunk" else True}
    assert largest_difference(backend, shape, decodes, prefills, **rule) < 0.02


def test_sinks_that_are_not_one_for_each_head_are_refused() -> None:
    cache = PagedCache(1, 1, 16, 2, 32, torch.float32)
    row, one = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    context = AttentionContext(cache, torch.zeros(1, dtype=torch.int64), 1, row, one)
    q, k = torch.ones(1, 4, 1, 32), torch.ones(1, 2, 1, 32)
    layer = AttentionLayer(0, 1.0, sinks=torch.zeros(2))
    attention = NativeAttention(AttentionShape(4, 2, 32, torch.float32))
    with pytest.raises(ValueError, match=r"sinks are contiguous float32 \[4\], got"):
        attention.forward(layer, q, k, k, context)


def test_scores_far_apart_do_not_overflow(backend: Backend) -> None:
    assert largest_difference(backend, Shape(), [1, 300], [(50, 200)], spread=30.0) < 0.05


def test_bfloat16_is_within_its_own_error(backend: Backend) -> None:
    shape = Shape(9, 3, 64, 16, torch.bfloat16)
    assert largest_difference(backend, shape, [1, 64, 700], [(64, 64), (40, 400)]) < 0.02


def test_a_decode_row_does_not_depend_on_its_batch() -> None:
    attention = NativeAttention(AttentionShape(6, 2, 32, torch.float32))
    generator = torch.Generator().manual_seed(3)
    cache = PagedCache(1, 64, 16, 2, 32, torch.float32)
    for pool in cache.keys + cache.values:
        pool.normal_(generator=generator)
    q, k, v = (torch.randn(1, h, 4, 32, generator=generator) for h in (6, 2, 2))
    tables = torch.arange(64, dtype=torch.int32).reshape(4, 16)
    lengths = torch.tensor([250, 130, 17, 256], dtype=torch.int32)
    slots = tables.long()[torch.arange(4), (lengths - 1) // 16] * 16 + (lengths - 1) % 16
    layer = AttentionLayer(0, 1.0)

    def run(rows: slice) -> torch.Tensor:
        n = len(range(4)[rows])
        context = AttentionContext(cache, slots[rows], n, tables[rows], lengths[rows])
        query, key, value = (x[:, :, rows] for x in (q, k, v))
        return attention.forward(layer, query, key, value, context)

    together = run(slice(0, 4))
    for row in range(4):
        assert torch.equal(run(slice(row, row + 1)), together[:, row : row + 1])


class Module(torch.nn.Module):
    layer_idx = 0
    is_causal = True


@pytest.fixture
def one_token() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionContext]:
    cache = PagedCache(1, 1, 16, 2, 32, torch.float32)
    zero = torch.zeros(1, dtype=torch.int64)
    row = torch.zeros(1, 1, dtype=torch.int32)
    context = AttentionContext(cache, zero, 1, row, torch.ones(1, dtype=torch.int32))
    q, k, v = (torch.randn(1, h, 1, 32) for h in (4, 2, 2))
    return q, k, v, context


@pytest.mark.parametrize(
    ("name", "value"),
    [("position_bias", torch.zeros(1)), ("dropout", 0.1)],
)
def test_what_it_would_have_to_ignore_is_refused_by_name(
    one_token: tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionContext],
    name: str,
    value: Any,
) -> None:
    q, k, v, context = one_token
    attention = PagedAttention(NativeAttention(AttentionShape(4, 2, 32, torch.float32)), [ANY])
    with attention.over(context):
        with pytest.raises(ValueError, match=name):
            paged_attention(Module(), q, k, v, None, **{name: value})
        with pytest.raises(ValueError, match="attention_mask"):
            paged_attention(Module(), q, k, v, torch.zeros(1))
        with pytest.raises(ValueError, match="is_causal"):
            paged_attention(Module(), q, k, v, None, is_causal=False)
    with pytest.raises(RuntimeError, match="runs within PagedAttention"):
        paged_attention(Module(), q, k, v, None)


def test_what_changes_nothing_is_let_through(
    one_token: tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionContext],
) -> None:
    q, k, v, context = one_token
    attention = PagedAttention(NativeAttention(AttentionShape(4, 2, 32, torch.float32)), [ANY])
    with attention.over(context):
        out, weights = paged_attention(
            Module(),
            q,
            k,
            v,
            None,
            position_ids=torch.zeros(1, 1),
            use_cache=False,
            output_attentions=False,
            s_aux=None,
        )
    assert weights is None
    torch.testing.assert_close(out, v.repeat_interleave(2, dim=1).transpose(1, 2))


def test_a_layer_with_less_than_the_cache_is_filled_up() -> None:
    cache = PagedCache(1, 1, 16, 3, 32, torch.float32)
    row, one = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    context = AttentionContext(cache, torch.zeros(1, dtype=torch.int64), 1, row, one)
    q, k, v = torch.randn(1, 4, 1, 24), torch.randn(1, 2, 1, 24), torch.randn(1, 2, 1, 10)
    attention = PagedAttention(NativeAttention(AttentionShape(6, 3, 32, torch.float32)), [ANY])
    with attention.over(context):
        out, _ = paged_attention(Module(), q, k, v, None, s_aux=torch.full((4,), -100.0))
    torch.testing.assert_close(out, v.repeat_interleave(2, dim=1).transpose(1, 2))


def test_a_shape_that_is_not_the_kernels_is_served_and_said() -> None:
    plain = build(NativeAttention, AttentionShape(4, 2, 20, torch.float32))
    assert type(plain) is TorchAttention
    (note,) = plain.notes
    assert "head dims up to 512 in steps of 16, not 20" in note
    served = build(NativeAttention, AttentionShape(4, 2, 32, torch.float32))
    assert type(served) is NativeAttention
    assert served.notes == []

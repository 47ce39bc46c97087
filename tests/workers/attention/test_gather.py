"""Tokens that attend in both directions, through the backends that take them."""

from __future__ import annotations

import pytest
import torch

from tests.workers.attention.toy import ToyAttention
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionLayer, AttentionShape, AttentionWindow
from workers.attention.native import NativeAttention
from workers.attention.paged import PagedAttention
from workers.attention.registry import Backend

SHAPE = AttentionShape(4, 2, 16, torch.float32)
LENGTH, CHUNK = 30, 22
SPANS = ((9, 15), (15, 16), (20, 30))


def context(*, spans: tuple[tuple[int, int], ...]) -> AttentionContext:
    """A decode, and the second chunk of a prompt."""
    cache = PagedCache(1, 12, 4, 2, 16, torch.float32)
    draw = torch.Generator().manual_seed(2)
    for pool in (*cache.keys, *cache.values):
        pool.copy_(torch.randn(pool.shape, generator=draw))
    table = torch.randperm(8, generator=draw).to(torch.int32)
    at = torch.arange(LENGTH - CHUNK, LENGTH)
    slots = table.long()[at // 4] * 4 + at % 4
    return AttentionContext(
        cache,
        torch.cat([torch.tensor([9 * 4 + 1]), slots]),
        1,
        torch.tensor([[8, 9]], dtype=torch.int32),
        torch.tensor([6], dtype=torch.int32),
        [Prefill(1, CHUNK, LENGTH, table, spans)],
    )


def dense(batch: AttentionContext, query: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
    """The chunk's tokens by a mask that is written down: [CHUNK, n_heads, head_dim]."""
    table = batch.prefills[0].block_table.long()
    keys, values = (
        pool[0][table].transpose(1, 2).flatten(0, 1)[:LENGTH]
        for pool in (batch.cache.keys, batch.cache.values)
    )
    mask = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for one in range(LENGTH):
        for other in range(LENGTH):
            within = any(begin <= one < end and begin <= other < end for begin, end in SPANS)
            near = not layer.window or other > one - layer.window
            mask[one, other] = within or (other <= one and near)
    scores = torch.einsum("qhd,khd->hqk", query, keys.repeat_interleave(2, 1)) * layer.scale
    scores = scores.masked_fill(~mask[-CHUNK:], float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values.repeat_interleave(2, 1))


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("softcap", [0.0, 2.0e9])
@pytest.mark.parametrize("backend", [TorchAttention, NativeAttention])
def test_what_is_within_a_span_attends_to_all_of_it(
    backend: Backend, window: int, softcap: float
) -> None:
    batch = context(spans=SPANS)
    draw = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, n, CHUNK + 1, 16, generator=draw) for n in (4, 2, 2))
    layer = AttentionLayer(0, 0.3, window, softcap=softcap)
    found = backend(SHAPE).forward(layer, query, key, value, batch)
    expected = dense(batch, query[0, :, 1:].transpose(0, 1), layer)
    torch.testing.assert_close(found[0, 1:], expected, atol=2e-6, rtol=1e-5)
    causal = backend(SHAPE).forward(layer, query, key, value, context(spans=()))
    assert (causal[0, 1:] - expected).abs().max() > 0.1
    torch.testing.assert_close(causal[0, 0], found[0, 0])


def test_another_backend_refuses_them_and_a_model_attends_by_the_one_that_does_not() -> None:
    draw = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, n, CHUNK + 1, 16, generator=draw) for n in (4, 2, 2))
    layer = AttentionLayer(0, 0.3)
    toy = ToyAttention(SHAPE)
    with pytest.raises(ValueError, match="takes no tokens that attend to later ones"):
        toy.forward(layer, query, key, value, context(spans=SPANS))
    paged = PagedAttention(toy, [AttentionWindow()])
    found = paged.attend(layer, query, key, value, context(spans=SPANS))
    expected = TorchAttention(SHAPE).forward(layer, query, key, value, context(spans=SPANS))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("span", [(7, 9), (29, 31), (12, 11)])
def test_a_span_lies_within_its_chunk(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are not within positions 8 to 29 of their chunk"):
        context(spans=(span,))

"""Random mixed batches for paged attention, and plain attention to hold it to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.helpers.kv_oracle import coded, stood_for
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.kv_codes import UNSCALED, KvCodes, KvScales, Pool
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.registry import Backend


@dataclass
class Shape:
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    codes: KvCodes | None = None
    scales: KvScales = UNSCALED

    @property
    def attention(self) -> AttentionShape:
        return AttentionShape(self.n_heads, self.n_kv_heads, self.head_dim, self.dtype)


def plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    chunk: int,
    sinks: torch.Tensor | None,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    """Eager attention of one sequence in float64: q [n, n_heads, dim] are the last n positions of
    k, v [length, n_kv_heads, dim]."""
    n, length = q.shape[0], k.shape[0]
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.double(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = torch.arange(length) - torch.arange(length - n, length)[:, None]
    scores = scores.masked_fill(ahead > 0, float("-inf"))
    if window:
        scores = scores.masked_fill(ahead <= -window, float("-inf"))
    if slopes is not None:
        scores = scores + slopes[:, None, None] * ahead
    if chunk:
        at = torch.arange(length) // chunk
        scores = scores.masked_fill(at != at[length - n :, None], float("-inf"))
    if sinks is not None:
        column = sinks[:, None, None].double().expand(-1, n, 1)
        scores = torch.cat((scores, column), dim=-1)
    return torch.einsum("hnl,lhd->nhd", scores.softmax(dim=-1)[..., :length], v)


def put(pool: Pool, codes: KvCodes | None, slots: torch.Tensor, x: torch.Tensor) -> None:
    """Write x [n, n_kv_heads, dim] at these slots."""
    size = pool.stored.shape[2]
    at = slots // size, slice(None), slots % size
    stored, scales = (x, None) if codes is None else coded(x, codes, pool.scale)
    pool.stored[at] = stored.to(pool.stored.device)
    if pool.scales is not None and scales is not None:
        pool.scales[at] = scales[..., 0].to(pool.scales.device)


def assert_put(pool: Pool, codes: KvCodes | None, slots: torch.Tensor, x: torch.Tensor) -> None:
    """Fail where x [n, n_kv_heads, dim] is not what lies at these slots, bit for bit."""
    size = pool.stored.shape[2]
    at = slots // size, slice(None), slots % size
    stored, scales = (x, None) if codes is None else coded(x, codes, pool.scale)
    assert torch.equal(pool.stored[at].cpu(), stored)
    if pool.scales is not None and scales is not None:
        assert torch.equal(pool.scales[at].cpu(), scales[..., 0])


def largest_difference(
    backend: Backend,
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
    """Of one mixed batch from plain attention. `decodes` are context lengths; `prefills` are
    (chunk, length after it). The cache's unwritten slots hold NaN; blocks lie in random order.

    Of codes, those that it writes must be the ones that the numbers have."""
    generator = torch.Generator().manual_seed(len(decodes) + 7 * len(prefills) + shape.block_size)
    bs, dim = shape.block_size, shape.head_dim
    lengths = decodes + [length for _, length in prefills]
    new = [1] * len(decodes) + [n for n, _ in prefills]
    n_blocks = [-(-length // bs) for length in lengths]
    cache = PagedCache(
        2, sum(n_blocks) + 1, bs, shape.n_kv_heads, dim, shape.dtype, shape.device, shape.codes
    )
    cache.scales = [UNSCALED, shape.scales]
    for one in cache.keys + cache.values + cache.row_scales:
        one.fill_(float("nan") if one.dtype.is_floating_point else 0x7F)
    order = (1 + torch.randperm(sum(n_blocks), generator=generator)).to(torch.int32)
    tables = list(order.split(n_blocks))

    def normal(*size: int) -> torch.Tensor:
        return (spread * torch.randn(*size, generator=generator)).to(shape.dtype)

    q, k, v, slots = [], [], [], []
    for table, length, n in zip(tables, lengths, new, strict=True):
        keys, values = (normal(length, shape.n_kv_heads, dim) for _ in range(2))
        at = torch.arange(length)
        slot = table.long()[at // bs] * bs + at % bs
        before = slot[: length - n]
        for pool, given in zip(cache.pools(1), (keys, values), strict=True):
            put(pool, shape.codes, before, given[: length - n])
        q.append(normal(n, shape.n_heads, dim))
        k.append(keys)
        v.append(values)
        slots.append(slot[length - n :])
    n_decode, widest = len(decodes), max(n_blocks[: len(decodes)], default=0)
    padded = torch.zeros(n_decode, widest, dtype=torch.int32)
    for row, table in enumerate(tables[:n_decode]):
        padded[row, : len(table)] = table
    chunks: list[Prefill] = []
    for (n, length), table in zip(prefills, tables[n_decode:], strict=True):
        chunks.append(Prefill(n_decode + sum(c.n for c in chunks), n, length, table))
    context = AttentionContext(
        cache,
        torch.cat(slots),
        n_decode,
        padded,
        torch.tensor(decodes, dtype=torch.int32),
        chunks,
    )

    def packed(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(tensors)[None].to(shape.device).transpose(1, 2)

    new_k, new_v = (
        packed([x[-n:] for x, n in zip(tensors, new, strict=True)]) for tensors in (k, v)
    )
    scale = dim**-0.5
    heads = torch.arange(shape.n_heads)
    per_head = (heads * 0.7 - 1.0 if sinks else None, 0.5 / (1.0 + heads) if slopes else None)
    on_device = (None if x is None else x.to(shape.device) for x in per_head)
    layer = AttentionLayer(1, scale, window, chunk, softcap, *on_device)
    out = backend(shape.attention).forward(layer, packed(q), new_k, new_v, context)
    read_k, read_v = (
        [stood_for(x, shape.codes, one, shape.dtype) for x in given]
        for given, one in zip((k, v), shape.scales, strict=True)
    )
    expected = [
        plain(*qkv, scale, window, softcap, chunk, *per_head)
        for qkv in zip(q, read_k, read_v, strict=True)
    ]
    for pool, given in zip(cache.pools(1), (new_k, new_v), strict=True):
        assert_put(pool, shape.codes, torch.cat(slots), given[0].transpose(0, 1).cpu())
    assert out.shape == (1, sum(new), shape.n_heads, dim)
    assert out.dtype == shape.dtype
    return float((out[0].cpu() - torch.cat(expected)).abs().max())

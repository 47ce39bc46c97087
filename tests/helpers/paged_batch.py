"""Random mixed batches for paged attention, and plain attention to hold it to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
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
    """Eager attention of one sequence in float32: q [n, n_heads, dim] are the last n positions of
    k, v [length, n_kv_heads, dim]."""
    n, length = q.shape[0], k.shape[0]
    k, v = (x.float().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.float(), k) * scale
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
        column = sinks[:, None, None].expand(-1, n, 1)
        scores = torch.cat((scores, column), dim=-1)
    return torch.einsum("hnl,lhd->nhd", scores.softmax(dim=-1)[..., :length], v)


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
    (chunk, length after it). The cache's unwritten slots hold NaN; blocks lie in random order."""
    generator = torch.Generator().manual_seed(len(decodes) + 7 * len(prefills) + shape.block_size)
    bs, dim = shape.block_size, shape.head_dim
    lengths = decodes + [length for _, length in prefills]
    new = [1] * len(decodes) + [n for n, _ in prefills]
    n_blocks = [-(-length // bs) for length in lengths]
    cache = PagedCache(2, sum(n_blocks) + 1, bs, shape.n_kv_heads, dim, shape.dtype, shape.device)
    for pool in cache.keys + cache.values:
        pool.fill_(float("nan"))
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
        cache.keys[1][before // bs, :, before % bs] = keys[: length - n].to(shape.device)
        cache.values[1][before // bs, :, before % bs] = values[: length - n].to(shape.device)
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
    given = (None if x is None else x.to(shape.device) for x in per_head)
    layer = AttentionLayer(1, scale, window, chunk, softcap, *given)
    out = backend(shape.attention).forward(layer, packed(q), new_k, new_v, context)
    expected = [
        plain(*qkv, scale, window, softcap, chunk, *per_head) for qkv in zip(q, k, v, strict=True)
    ]
    assert out.shape == (1, sum(new), shape.n_heads, dim)
    assert out.dtype == shape.dtype
    return float((out[0].float().cpu() - torch.cat(expected)).abs().max())

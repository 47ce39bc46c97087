"""Paged attention in plain torch: each sequence's blocks are gathered, then attended.

For machines without a C compiler, and for what the kernels of a device do not support.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from workers.attention.backend import AttentionBackend
from workers.attention.context import AttentionContext
from workers.attention.kv_codes import KvCodes, Pool, decode, encode
from workers.attention.layer import AttentionLayer


class _Places(NamedTuple):
    """The metadata of a forward pass on the device."""

    blocks: torch.Tensor
    offsets: torch.Tensor
    """int64 [n_tokens], of each token's slot."""
    tables: torch.Tensor
    """int32 [n_decode, max_blocks]"""
    lengths: torch.Tensor
    """int64 [n_decode]"""
    longest: int
    chunk_tables: list[torch.Tensor]
    """int32 [n_blocks] of each prefill."""


class TorchAttention(AttentionBackend[_Places]):
    """Attention for any model shape."""

    name = "torch"
    devices = frozenset({"cpu", "cuda"})
    reads_codes = True
    causal_only = False

    def build(self, batch: AttentionContext) -> _Places:
        """See `AttentionBackend`."""
        device = batch.cache.keys[0].device
        slots = batch.slot_mapping.to(device)
        return _Places(
            slots // batch.cache.block_size,
            slots % batch.cache.block_size,
            batch.decode_block_tables.to(device),
            batch.decode_lengths.to(device).long(),
            int(batch.decode_lengths.max()) if batch.n_decode else 0,
            [chunk.block_table.to(device) for chunk in batch.prefills],
        )

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        batch: AttentionContext,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        batch.expect_fitting(query, key, value)
        places = self.metadata(batch)
        codes = batch.cache.codes
        keys, values = batch.cache.pools(layer.index)
        if key is not None and value is not None:
            _put(keys, codes, places, key[0].transpose(0, 1))
            _put(values, codes, places, value[0].transpose(0, 1))

        rows = query[0].transpose(0, 1)  # [n_tokens, n_heads, head_dim]
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        n = batch.n_decode
        if n:
            lengths, longest = places.lengths, places.longest
            k = _gather(keys, codes, places.tables, longest, query.dtype)
            v = _gather(values, codes, places.tables, longest, query.dtype)
            # Past a row's end is what was never written: NaN perhaps, and NaN times zero is NaN.
            past = torch.arange(longest, device=query.device) >= lengths[:, None]
            k.masked_fill_(past[:, None, :, None], 0)
            v.masked_fill_(past[:, None, :, None], 0)
            out[:n] = _attend(rows[:n, None], k, v, lengths[:, None] - 1, layer)[:, 0]
        for (start, n, length, _, spans), table in zip(
            batch.prefills, places.chunk_tables, strict=True
        ):
            k = _gather(keys, codes, table[None], length, query.dtype)
            v = _gather(values, codes, table[None], length, query.dtype)
            positions = torch.arange(length - n, length, device=query.device)[None]
            chunk = slice(start, start + n)
            out[chunk] = _attend(rows[None, chunk], k, v, positions, layer, spans)[0]
        return out[None]


def _put(pool: Pool, codes: KvCodes | None, places: _Places, x: torch.Tensor) -> None:
    """Store x [n_tokens, n_kv_heads, head_dim] at each token's place."""
    at = places.blocks, slice(None), places.offsets
    if codes is None:
        pool.stored[at] = x
        return
    pool.stored[at], scales = encode(x, codes, pool.scale)
    if pool.scales is not None:
        pool.scales[at] = scales


def _gather(
    pool: Pool, codes: KvCodes | None, tables: torch.Tensor, length: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return [n_rows, n_kv_heads, length, head_dim] in `dtype`, copied block by block."""
    stored = _in_order(pool.stored, tables, length)
    if codes is None:
        return stored
    scales: torch.Tensor | float = pool.scale
    if pool.scales is not None:
        scales = _in_order(pool.scales[..., None], tables, length)
    return decode(stored, scales, codes, dtype)


def _in_order(pool: torch.Tensor, tables: torch.Tensor, length: int) -> torch.Tensor:
    n_blocks = -(-length // pool.shape[2])
    blocks = pool[tables[:, :n_blocks].long()]  # [n_rows, n_blocks, n_kv_heads, block_size, any]
    return blocks.transpose(1, 2).flatten(2, 3)[:, :, :length]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    layer: AttentionLayer,
    spans: tuple[tuple[int, int], ...] = (),
) -> torch.Tensor:
    """Attend, within `spans` of positions in both directions. Query [n_rows, n, n_heads, dim] at
    `positions` [n_rows, n]; key and value [n_rows, n_kv_heads, length, dim] -> like query.

    The heads that share a key-value head are folded into the queries: torch's own grouped heads
    are several times slower in bfloat16.
    """
    n_rows, n, n_heads, dim = query.shape
    n_kv_heads, length = key.shape[1:3]
    group = n_heads // n_kv_heads
    folded = query.reshape(n_rows, n, n_kv_heads, group, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    ahead = torch.arange(length, device=key.device) - positions[:, :, None]
    seen = ahead <= 0
    if layer.window:
        seen &= ahead > -layer.window
    if layer.chunk:
        seen &= ahead >= -(positions % layer.chunk)[:, :, None]
    for begin, end in spans:
        inside = (positions >= begin) & (positions < end)
        seen[:, :, begin:end] |= inside[:, :, None]
    seen = seen[:, None].repeat(1, 1, group, 1)  # [n_rows, 1, group * n, length]
    if layer.softcap or layer.sinks is not None or layer.slopes is not None:
        scores = folded.float() @ key.float().transpose(2, 3) * layer.scale
        if layer.softcap:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        if layer.slopes is not None:
            slopes = layer.slopes.reshape(1, n_kv_heads, group, 1, 1)
            scores += (slopes * ahead[:, None, None]).flatten(2, 3)
        scores.masked_fill_(~seen, float("-inf"))
        if layer.sinks is not None:
            # A key that every query sees and that has no value.
            sinks = layer.sinks.reshape(1, n_kv_heads, group, 1, 1).expand(n_rows, -1, -1, n, 1)
            scores = torch.cat((scores, sinks.flatten(2, 3)), dim=-1)
        attended = (scores.softmax(dim=-1)[..., :length] @ value.float()).to(query.dtype)
    else:
        attended = scaled_dot_product_attention(folded, key, value, seen, scale=layer.scale)
    attended = attended.reshape(n_rows, n_kv_heads, group, n, dim).permute(0, 3, 1, 2, 4)
    return attended.reshape(n_rows, n, n_heads, dim)

"""Paged attention in plain torch: each sequence's blocks are gathered, then attended.

What machines without a C compiler use, and shapes that the kernel does not take.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from workers.attention.context import AttentionContext


def attend_gathered(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    context: AttentionContext,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Query [1, n_heads, n_tokens, head_dim], key and value [1, n_kv_heads, n_tokens, head_dim], of
    the cache's dtype -> [1, n_tokens, n_heads, head_dim]. Zero is no window, no softcap.
    """
    keys, values = context.cache.keys[layer], context.cache.values[layer]
    block = context.slot_mapping // context.cache.block_size
    offset = context.slot_mapping % context.cache.block_size
    keys[block, :, offset] = key[0].transpose(0, 1)
    values[block, :, offset] = value[0].transpose(0, 1)

    rows = query[0].transpose(0, 1)  # [n_tokens, n_heads, head_dim]
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    n = context.n_decode
    if n:
        lengths = context.decode_lengths.long()
        longest = int(lengths.max())
        k = _gather(keys, context.decode_block_tables, longest)
        v = _gather(values, context.decode_block_tables, longest)
        # Past a row's end is what was never written: NaN perhaps, and NaN times zero is NaN.
        unwritten = (torch.arange(longest) >= lengths[:, None])[:, None, :, None]
        k.masked_fill_(unwritten, 0)
        v.masked_fill_(unwritten, 0)
        positions = lengths[:, None] - 1
        out[:n] = _attend(rows[:n, None], k, v, positions, scale, window, softcap)[:, 0]
    for start, n, length, table in context.prefills:
        k = _gather(keys, table[None], length)
        v = _gather(values, table[None], length)
        positions = torch.arange(length - n, length)[None]
        chunk = rows[None, start : start + n]
        out[start : start + n] = _attend(chunk, k, v, positions, scale, window, softcap)[0]
    return out[None]


def _gather(pool: torch.Tensor, tables: torch.Tensor, length: int) -> torch.Tensor:
    """[n_rows, n_kv_heads, length, head_dim], copied block by block."""
    n_blocks = -(-length // pool.shape[2])
    blocks = pool[tables[:, :n_blocks].long()]  # [n_rows, n_blocks, n_kv_heads, block_size, dim]
    return blocks.transpose(1, 2).flatten(2, 3)[:, :, :length]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Query [n_rows, n, n_heads, dim] at `positions` [n_rows, n]; key and value [n_rows,
    n_kv_heads, length, dim] -> like query.

    The heads that share a key-value head are folded into the queries: torch's own grouped heads
    are several times slower in bfloat16.
    """
    n_rows, n, n_heads, dim = query.shape
    n_kv_heads, length = key.shape[1:3]
    group = n_heads // n_kv_heads
    folded = query.reshape(n_rows, n, n_kv_heads, group, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    at = torch.arange(length)
    seen = at <= positions[:, :, None]
    if window:
        seen &= at > positions[:, :, None] - window
    seen = seen[:, None].repeat(1, 1, group, 1)  # [n_rows, 1, group * n, length]
    if softcap:
        scores = folded.float() @ key.float().transpose(2, 3) * scale
        scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, float("-inf"))
        attended = (scores.softmax(dim=-1) @ value.float()).to(query.dtype)
    else:
        attended = scaled_dot_product_attention(folded, key, value, seen, scale=scale)
    attended = attended.reshape(n_rows, n_kv_heads, group, n, dim).permute(0, 3, 1, 2, 4)
    return attended.reshape(n_rows, n, n_heads, dim)

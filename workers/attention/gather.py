"""Paged attention in plain torch: each sequence's blocks are gathered, then attended.

What machines without a C compiler use, and what the kernels of a device do not take.
"""

from __future__ import annotations

from typing import NamedTuple

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
    chunk: int = 0,
    sinks: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `paged.Attend`."""
    device = query.device
    context.expect_on_host()
    context.expect_fitting(query, key, value)
    rule = _Rule(scale, window, softcap, chunk, sinks, slopes)
    keys, values = context.cache.keys[layer], context.cache.values[layer]
    slots = context.slot_mapping.to(device)
    block, offset = slots // context.cache.block_size, slots % context.cache.block_size
    keys[block, :, offset] = key[0].transpose(0, 1)
    values[block, :, offset] = value[0].transpose(0, 1)

    rows = query[0].transpose(0, 1)  # [n_tokens, n_heads, head_dim]
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    n = context.n_decode
    if n:
        longest = int(context.decode_lengths.max())
        lengths = context.decode_lengths.to(device).long()
        tables = context.decode_block_tables.to(device)
        k = _gather(keys, tables, longest)
        v = _gather(values, tables, longest)
        # Past a row's end is what was never written: NaN perhaps, and NaN times zero is NaN.
        unwritten = (torch.arange(longest, device=device) >= lengths[:, None])[:, None, :, None]
        k.masked_fill_(unwritten, 0)
        v.masked_fill_(unwritten, 0)
        positions = lengths[:, None] - 1
        out[:n] = _attend(rows[:n, None], k, v, positions, rule)[:, 0]
    for start, n, length, table in context.prefills:
        k = _gather(keys, table[None].to(device), length)
        v = _gather(values, table[None].to(device), length)
        positions = torch.arange(length - n, length, device=device)[None]
        out[start : start + n] = _attend(rows[None, start : start + n], k, v, positions, rule)[0]
    return out[None]


class _Rule(NamedTuple):
    """How to attend. See `paged.Attend`."""

    scale: float
    window: int
    softcap: float
    chunk: int
    sinks: torch.Tensor | None
    slopes: torch.Tensor | None


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
    rule: _Rule,
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
    ahead = torch.arange(length, device=key.device) - positions[:, :, None]
    seen = ahead <= 0
    if rule.window:
        seen &= ahead > -rule.window
    if rule.chunk:
        seen &= ahead >= -(positions % rule.chunk)[:, :, None]
    seen = seen[:, None].repeat(1, 1, group, 1)  # [n_rows, 1, group * n, length]
    if rule.softcap or rule.sinks is not None or rule.slopes is not None:
        scores = folded.float() @ key.float().transpose(2, 3) * rule.scale
        if rule.softcap:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if rule.slopes is not None:
            slopes = rule.slopes.reshape(1, n_kv_heads, group, 1, 1)
            scores += (slopes * ahead[:, None, None]).flatten(2, 3)
        scores.masked_fill_(~seen, float("-inf"))
        if rule.sinks is not None:
            # A key that every query sees and that has no value.
            sinks = rule.sinks.reshape(1, n_kv_heads, group, 1, 1).expand(n_rows, -1, -1, n, 1)
            scores = torch.cat((scores, sinks.flatten(2, 3)), dim=-1)
        attended = (scores.softmax(dim=-1)[..., :length] @ value.float()).to(query.dtype)
    else:
        attended = scaled_dot_product_attention(folded, key, value, seen, scale=rule.scale)
    attended = attended.reshape(n_rows, n_kv_heads, group, n, dim).permute(0, 3, 1, 2, 4)
    return attended.reshape(n_rows, n, n_heads, dim)

"""Doubles of other people's attention, in plain torch: flash-attn's `flash_attn_varlen_func` and
torch's `varlen_attn`, with their signatures, which run on NVIDIA GPUs only.

They refuse what the originals' `mha_varlen_fwd` refuses of paged keys and values.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.helpers.paged_batch import plain

calls: list[str] = []
"""Names of those that ran."""


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of flash-attn 2.8.3."""
    calls.append("flash")
    assert causal
    assert softmax_scale is not None
    assert block_table is not None
    lengths = cu_seqlens_k.diff()
    sums = (cu_seqlens_q, cu_seqlens_k)
    most = (max_seqlen_q, max_seqlen_k)
    return _attend(q, k, v, sums, most, lengths, block_table, softmax_scale, window_size, softcap)


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """Of torch 2.13."""
    calls.append("varlen")
    assert cu_seq_k is not None
    assert seqused_k is not None
    assert block_table is not None
    assert scale is not None
    assert enable_gqa or query.shape[1] == key.shape[2]
    sums = (cu_seq_q, cu_seq_k)
    most = (max_q, max_k)
    return _attend(query, key, value, sums, most, seqused_k, block_table, scale, window_size, 0.0)


def put_in_place(patch: pytest.MonkeyPatch) -> None:
    """Of the originals, whether these are there or not; forget the calls before."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "flash_attn", module)
    patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    calls.clear()


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sums: tuple[torch.Tensor, torch.Tensor],
    most: tuple[int, int],
    lengths: torch.Tensor,
    tables: torch.Tensor,
    scale: float,
    window_size: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """q [tokens, heads, dim]; k, v [pages, page, kv heads, dim]; tables [n, pages of the longest].
    Queries are the last of their sequence's positions."""
    n, (_, page, n_kv_heads, dim) = len(lengths), k.shape
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype in (torch.bfloat16, torch.float16)
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == tables.stride(-1) == 1
    assert q.shape[1] % n_kv_heads == 0
    assert q.shape[2] == dim <= 256
    assert dim % 8 == 0
    assert page % 256 == 0
    assert k.shape == v.shape
    for one in (*sums, lengths, tables):
        assert one.dtype == torch.int32
        assert one.device == q.device
    assert all(one.is_contiguous() and one.shape == (n + 1,) for one in sums)
    assert lengths.is_contiguous()
    assert tables.shape == (n, -(-most[1] // page))
    queries = sums[0].diff()
    assert (int(queries.max()), int(lengths.max())) == most
    assert sums[0][0] == sums[1][0] == 0
    assert sums[0][-1] == len(q)
    assert torch.equal(sums[1].diff(), lengths)
    left, right = window_size
    assert right == 0
    out = []
    for query, length, table in zip(
        q.split(queries.tolist()), lengths.tolist(), tables, strict=True
    ):
        blocks = table[: -(-length // page)].long()
        keys, values = (pool[blocks].flatten(0, 1)[:length] for pool in (k, v))
        out.append(plain(query, keys, values, scale, left + 1, softcap, 0, None, None))
    return torch.cat(out).to(q.dtype)

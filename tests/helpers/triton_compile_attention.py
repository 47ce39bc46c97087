"""Compiles for a GPU, without one, each kernel that paged attention launches: `python -m
tests.helpers.triton_compile_attention 90 bfloat16 32 8 128 4096 50.0` (compute capability, dtype,
heads, key-value heads, head dim, window, softcap); with `extras` at the end, for chunks, sinks and
slopes; with `codes=int8`, of a cache of codes; with `keep=FOLDER`, the PTX goes there.

One line of JSON for each kernel, a `Build`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.helpers.triton_compile import standing_in
from workers.attention import triton_kernels
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.kv_codes import CODES
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.triton_paged import TritonAttention

KERNELS = ("write", "prefill", "decode", "combine")


def main(
    capability: int,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    window: int,
    softcap: float,
    more: dict[str, str],
) -> None:
    n_heads, n_kv_heads, head_dim = heads
    codes = CODES[more["codes"]] if "codes" in more else None
    cache = PagedCache(1, 2, 16, n_kv_heads, head_dim, dtype, codes=codes)
    context = AttentionContext(
        cache,
        torch.arange(3),
        1,
        torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1, dtype=torch.int32),
        [Prefill(1, 2, 2, torch.ones(1, dtype=torch.int32))],
    )
    q, k, v = (torch.zeros(1, 3, n, head_dim, dtype=dtype) for n in (n_heads, *[n_kv_heads] * 2))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attention = TritonAttention(AttentionShape(n_heads, n_kv_heads, head_dim, dtype))
    per_head = torch.zeros(n_heads) if "extras" in more else None
    chunk = 4096 if "extras" in more else 0
    keep = Path(more["keep"]) if "keep" in more else None
    layer = AttentionLayer(0, head_dim**-0.5, window, chunk, softcap, per_head, per_head)
    with standing_in(triton_kernels, KERNELS, capability, keep):
        attention.forward(layer, q, k, v, context)


if __name__ == "__main__":
    capability, dtype, n_heads, n_kv_heads, head_dim, window, softcap, *more = sys.argv[1:]
    main(
        int(capability),
        getattr(torch, dtype),
        (int(n_heads), int(n_kv_heads), int(head_dim)),
        int(window),
        float(softcap),
        {name: value for name, _, value in (word.partition("=") for word in more)},
    )

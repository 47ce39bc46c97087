"""Time of one layer of paged attention, key-value write included, against its bytes.

    python -m benchmarks.kernels [--threads 2] [--dtype bfloat16]

The layers of a cache larger than the processor's caches are gone through in turn, as a model does.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.gather import attend_gathered
from workers.attention.kernel import Kernel

Attend = Callable[..., torch.Tensor]
N_HEADS, N_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
POOL_BYTES = 512 << 20


def milliseconds(
    attend: Attend, n: int, length: int, rows: int, dtype: torch.dtype, passes: int
) -> float:
    """Best pass over the layers. `rows` decode at `length`, or with `n` above 1 that
    many chunks of n tokens end there."""
    blocks = -(-length // BLOCK_SIZE)
    layer_bytes = PagedCache.bytes_per_block(1, BLOCK_SIZE, N_KV_HEADS, HEAD_DIM, dtype)
    n_layers = max(2, min(30, POOL_BYTES // (layer_bytes * blocks * rows)))
    cache = PagedCache(n_layers, blocks * rows, BLOCK_SIZE, N_KV_HEADS, HEAD_DIM, dtype)
    for pool in cache.keys + cache.values:
        pool.normal_()
    tables = torch.randperm(blocks * rows).to(torch.int32).reshape(rows, blocks)
    at = torch.arange(length - n, length)
    slots = (tables.long()[:, at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE).flatten()
    if n == 1:
        lengths = torch.full((rows,), length, dtype=torch.int32)
        context = AttentionContext(cache, slots, rows, tables, lengths)
    else:
        chunks = [Prefill(i * n, n, length, tables[i]) for i in range(rows)]
        none = torch.zeros(0, dtype=torch.int32)
        context = AttentionContext(cache, slots, 0, none.reshape(0, 0), none, chunks)
    q, k, v = (
        torch.randn(1, rows * n, heads, HEAD_DIM).to(dtype).transpose(1, 2)
        for heads in (N_HEADS, N_KV_HEADS, N_KV_HEADS)
    )
    best = float("inf")
    for _ in range(passes):
        begin = time.perf_counter()
        for layer in range(n_layers):
            attend(q, k, v, layer, context, HEAD_DIM**-0.5, 0, 0.0)
        best = min(best, (time.perf_counter() - begin) / n_layers)
    return best * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    kernel = Kernel()
    print(f"{given.dtype}, {given.threads} threads, ms a layer: kernel, plain torch; kernel GB/s")
    shapes = [(1, length, rows) for length in (256, 2048) for rows in (1, 16, 32, 64)]
    shapes += [(512, 512, 1), (512, 2048, 1), (512, 8192, 1), (16, 1500, 1), (20, 20, 16)]
    for n, length, rows in shapes:
        ours = milliseconds(kernel, n, length, rows, dtype, passes=7)
        plain = milliseconds(attend_gathered, n, length, rows, dtype, passes=2)
        line = f"{'decode' if n == 1 else f'chunk of {n:3}':12} x {rows:2} at context {length:4}:"
        line += f" {ours:8.3f} {plain:8.3f}"
        if n == 1:
            read = 2 * length * rows * N_KV_HEADS * HEAD_DIM * dtype.itemsize
            line += f" {read / ours / 1e6:6.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()

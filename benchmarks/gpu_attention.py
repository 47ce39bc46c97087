"""Times of paged attention on a GPU, against its measured limits.

    python -m benchmarks.gpu_attention [--heads 32 8 128] [--block-size 16] [--dtype bfloat16]

First come the rates of this GPU: bytes of a copy, counted both ways, and a product of matrices.
Then ms a layer, the write of its new keys and values included: for decodes the GB/s of keys and
values that are read, for chunks the TFLOP/s, each with its share of the rate. All layers, with
caches of their own so that they come from memory as in a model, are one CUDA graph, so that
launches cost what they do in one; the last column is ms a layer without the graph.

Decodes run a second time with room for contexts ROOM times as long, as the graphs of a server have
it: what that costs is what programs cost that find nothing to do. Chunks run through the Triton
kernel, and with pages of 256 through flash-attn and torch's varlen_attn where these are installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.registry import BACKENDS

DECODES = [(1, 1000), (1, 32768), (16, 1000), (64, 1000), (256, 1000), (64, 8192)]
"""(rows, context length)"""
CHUNKS = [(512, 512), (4096, 4096), (4096, 32768)]
"""(tokens, context length after them)"""
ROOM = 8
CACHE_BYTES = 4 << 30
MOST_LAYERS = 32
PASSES = 10


def seconds(work: Callable[[], object]) -> float:
    """Return the time of the fastest of some passes, by the GPU's clock."""
    work()
    best = float("inf")
    for _ in range(PASSES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def rates() -> tuple[float, float]:
    """Return bytes a second of a copy, operations a second of a product in bfloat16."""
    a, b = (torch.empty(2 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy = seconds(lambda: b.copy_(a))
    m, n = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = seconds(lambda: m @ n)
    return 2 * a.nbytes / copy, 2 * 8192**3 / product


def layers(
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    block_size: int,
    rows: int,
    new: int,
    length: int,
    device: str = "cuda",
    cache_bytes: int = CACHE_BYTES,
    attention: str = "triton",
    room: int = 0,
) -> tuple[int, Callable[[], None]]:
    """Return how many layers, and what runs them: `rows` sequences that are `length` long after
    their `new` positions. With `room`, decodes run as in graphs, with room for contexts so many
    times as long."""
    n_heads, n_kv_heads, head_dim = heads
    n_blocks = -(-length // block_size)
    per_layer = PagedCache.bytes_per_block(1, block_size, n_kv_heads, head_dim, dtype)
    n_layers = max(1, min(MOST_LAYERS, cache_bytes // (per_layer * rows * n_blocks)))
    cache = PagedCache(n_layers, rows * n_blocks, block_size, n_kv_heads, head_dim, dtype, device)
    for pool in cache.keys + cache.values:
        pool.normal_()
    tables = torch.randperm(rows * n_blocks).to(torch.int32).view(rows, n_blocks)
    at = torch.arange(length - new, length)
    slots = (tables.long()[:, at // block_size] * block_size + at % block_size).flatten()
    n_decode = rows if new == 1 else 0
    context = AttentionContext(
        cache,
        slots,
        n_decode,
        tables[:n_decode],
        torch.full((n_decode,), length, dtype=torch.int32),
        [] if n_decode else [Prefill(i * new, new, length, tables[i]) for i in range(rows)],
    )
    q, k, v = (
        torch.randn(1, rows * new, n, head_dim, device=device).to(dtype).transpose(1, 2)
        for n in (n_heads, n_kv_heads, n_kv_heads)
    )
    backend = BACKENDS[attention](AttentionShape(n_heads, n_kv_heads, head_dim, dtype))
    if room:
        batch = backend.metadata(context)
        roomy = batch._replace(most_parts=room * batch.most_parts)
        context = AttentionContext.captured(cache, n_decode, {backend: roomy})
    attends = [AttentionLayer(at, head_dim**-0.5) for at in range(n_layers)]

    def run() -> None:
        for layer in attends:
            backend.forward(layer, q, k, v, context)

    return n_layers, run


def timed(n_layers: int, run: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a layer, in a CUDA graph and launch by launch."""
    plain = seconds(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return seconds(graph.replay) / n_layers, plain / n_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, nargs=3, default=(32, 8, 128))
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    heads, block_size = tuple(options.heads), options.block_size
    dtype = getattr(torch, options.dtype)
    n_heads, n_kv_heads, head_dim = heads
    copy, product = rates()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {heads}, {dtype}")
    print(f"copy {copy / 1e9:.0f} GB/s, product {product / 1e12:.0f} TFLOP/s")
    for rows, length in DECODES:
        for room in (0, ROOM):
            graph, plain = timed(*layers(heads, dtype, block_size, rows, 1, length, room=room))
            rate = 2 * rows * length * n_kv_heads * head_dim * dtype.itemsize / graph
            print(
                f"decode {rows:4d} x {length:6d}{' roomy' if room else '':6s}: "
                f"{graph * 1e3:8.4f} ms, {rate / 1e9:6.0f} GB/s ({rate / copy:4.0%}); "
                f"{plain * 1e3:8.4f} ms launched",
                flush=True,
            )
    for name in ("triton", "flash", "varlen"):
        if refusal := BACKENDS[name].refusal():
            print(f"chunks by {name}: {refusal}")
            continue
        page = block_size if name == "triton" else BACKENDS[name].page_size
        for new, length in CHUNKS:
            graph, plain = timed(*layers(heads, dtype, page, 1, new, length, attention=name))
            seen = new * (length - new) + new * (new + 1) / 2
            rate = 4 * seen * n_heads * head_dim / graph
            print(
                f"chunk {new:4d} / {length:6d} {name:6s}: "
                f"{graph * 1e3:8.4f} ms, {rate / 1e12:6.0f} TFLOP/s ({rate / product:4.0%}); "
                f"{plain * 1e3:8.4f} ms launched",
                flush=True,
            )


if __name__ == "__main__":
    main()

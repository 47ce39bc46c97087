"""Times of the C kernels on a CPU, against their bytes and against torch.

    python -m benchmarks.kernels [attention] [linear] [quantized] [--threads 2] [--dtype bfloat16]

First comes the rate at which this machine reads memory, the floor of both. Every layer has a cache
and weights of its own, so that they come from memory as in a model; the shapes are SmolLM2-135M's.

- attention: one layer of paged attention, the write of its keys and values included. ms a layer of
  the kernel and of plain torch; GB/s of keys and values for decodes.
- linear: the linears of all layers, and the output layer. ms of ours, of ours with q, k, v and
  gate, up joined, of oneDNN with reordered weights, of torch; GB/s of weights, TFLOP/s. Always
  bfloat16.
- quantized: the linears of all layers and the output layer, each matrix of a layer that is joined
  with others so, as --quantize makes them. ms, and how many times as fast as bfloat16.

The forms of a thing take turns, and the best pass of each counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from workers.attention.backend import AttentionBackend
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.native import NativeAttention
from workers.quantization.method import Cut, Kind, Size
from workers.quantization.on_the_fly import OnTheFlyMethod
from workers.quantization.plain import PlainWeight, ReorderedWeight
from workers.quantization.registry import PLAIN

N_HEADS, N_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
POOL_BYTES = 512 << 20
DECODES = [(1, length, rows) for length in (256, 2048) for rows in (1, 16, 32, 64)]
CHUNKS = [(512, 512, 1), (512, 2048, 1), (512, 8192, 1), (16, 1500, 1), (20, 20, 16)]
"""(tokens of each row, context length after them, rows)"""

LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
"""n x k of q, k, v, o, gate, up, down"""
JOINED = [(0, 1, 2), (3,), (4, 5), (6,)]
N_LAYERS = 30
HEAD = (49152, 576)
N_ROWS = (1, 8, 16, 32, 64, 128, 512)

QUANTIZE = ("int8", "int4", "eetq", "bitsandbytes-nf4", "fp8")

KERNELS = ("attention", "linear", "quantized")

Passes = Mapping[str, Callable[[], object]]
Layers = list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]]


def best_ms(forms: Passes, n_passes: int) -> dict[str, float]:
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(n_passes):
        for name, run in forms.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: seconds * 1e3 for name, seconds in best.items()}


def report_reads() -> None:
    numbers = torch.ones(POOL_BYTES // 4)
    took = best_ms({"sum": lambda: numbers.sum()}, 7)["sum"]
    print(f"memory is read at {POOL_BYTES / took / 1e6:.1f} GB/s")


def attention_ms(n: int, length: int, rows: int, dtype: torch.dtype) -> dict[str, float]:
    """Return a layer's milliseconds: `rows` decode at `length`, or with `n` above 1 that many
    chunks of n end there."""
    blocks = -(-length // BLOCK_SIZE)
    layer_bytes = PagedCache.bytes_per_block(1, BLOCK_SIZE, N_KV_HEADS, HEAD_DIM, dtype)
    n_layers = max(2, min(N_LAYERS, POOL_BYTES // (layer_bytes * blocks * rows)))
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

    shape = AttentionShape(N_HEADS, N_KV_HEADS, HEAD_DIM, dtype)
    layers = [AttentionLayer(at, HEAD_DIM**-0.5) for at in range(n_layers)]

    def all_layers(backend: AttentionBackend[Any]) -> Callable[[], None]:
        def run() -> None:
            for layer in layers:
                backend.forward(layer, q, k, v, context)

        return run

    took = best_ms({"kernel": all_layers(NativeAttention(shape))}, 10)
    took |= best_ms({"torch": all_layers(TorchAttention(shape))}, 2)
    return {name: ms / n_layers for name, ms in took.items()}


def report_attention(dtype: torch.dtype) -> None:
    print(f"\none layer of attention, {dtype}".replace("torch.", ""))
    print(f"{'':36}{'kernel':>8} {'torch':>8} {'GB/s':>6}")
    for n, length, rows in DECODES + CHUNKS:
        took = attention_ms(n, length, rows, dtype)
        line = f"{'decode' if n == 1 else f'chunk of {n:3}':12} x {rows:2} at context {length:4}:"
        line += f" {took['kernel']:8.3f} {took['torch']:8.3f}"
        if n == 1:
            read = 2 * length * rows * N_KV_HEADS * HEAD_DIM * dtype.itemsize
            line += f" {read / took['kernel'] / 1e6:6.1f}"
        print(line, flush=True)


def linear_forms(shapes: list[tuple[int, int]], joined: list[tuple[int, ...]]) -> dict[str, Layers]:
    """Yield the same weights in every form, each layer with its k."""
    made: dict[str, Layers] = {"ours": [], "joined": [], "oneDNN": [], "torch": []}
    weights = [torch.randn(n, k, dtype=torch.bfloat16) for n, k in shapes]
    for (_, k), weight in zip(shapes, weights, strict=True):
        plain = PlainWeight(weight, None)
        made["ours"].append((k, plain.fastest().apply))
        made["oneDNN"].append((k, ReorderedWeight(weight, None).apply))
        made["torch"].append((k, plain.apply))
    for group in joined:
        sizes = [Size(*shapes[i]) for i in group]
        if (prepare := PLAIN.prepared("c_linear", sizes)) is not None:
            layer = prepare([PlainWeight(weights[i], None) for i in group], "")
            made["joined"].append((sizes[0].inputs, layer.apply))
    return {name: layers for name, layers in made.items() if layers}


def linear_ms(made: dict[str, Layers], rows: int) -> dict[str, float]:
    inputs = {k: torch.randn(rows, k, dtype=torch.bfloat16) for k, _ in next(iter(made.values()))}

    def all_layers(layers: Layers) -> Callable[[], None]:
        def run() -> None:
            for k, layer in layers:
                layer(inputs[k])

        return run

    passes = {name: all_layers(layers) for name, layers in made.items()}
    return best_ms(passes, 20 if rows <= 64 else 5)


def report_linear(what: str, made: dict[str, Layers], n_rows: list[int], weights: int) -> None:
    print(f"\n{what}, {weights * 2 / 1e6:.0f} MB of weights")
    print(f"{'rows':>5}" + "".join(f"{name:>9}" for name in made) + f"{'GB/s':>9}{'TFLOP/s':>9}")
    for rows in n_rows:
        took = linear_ms(made, rows)
        rates = weights * 2 / took["ours"] / 1e6, weights * 2 * rows / took["ours"] / 1e9
        line = [*took.values(), *rates]
        print(f"{rows:5}" + "".join(f"{x:9.2f}" for x in line), flush=True)


def report_linears() -> None:
    size = len(LAYER)
    joined = [tuple(layer * size + i for i in g) for layer in range(N_LAYERS) for g in JOINED]
    layers = linear_forms(LAYER * N_LAYERS, joined)
    weights = N_LAYERS * sum(n * k for n, k in LAYER)
    report_linear(f"{N_LAYERS} layers of {size} linears", layers, list(N_ROWS), weights)
    small = [rows for rows in N_ROWS if rows <= 64]
    report_linear("the output layer", linear_forms([HEAD], []), small, HEAD[0] * HEAD[1])


def quantized_layers(matrices: list[list[torch.Tensor]], flag: str) -> Layers:
    """Those that are joined, and the output layer last, as --quantize makes them; "" for none."""
    made: Layers = []
    for at, joined in enumerate(matrices):
        kind: Kind = "head" if at == len(matrices) - 1 else "linear"
        sizes = [Size(*one.shape) for one in joined]
        method = (OnTheFlyMethod(flag).for_layer("", kind) if flag else None) or PLAIN
        prepare = method.prepared("c_linear", sizes)
        assert prepare is not None
        weights = [
            method.weight({"weight": one}, size, Cut(), torch.bfloat16)
            for one, size in zip(joined, sizes, strict=True)
        ]
        made.append((sizes[0].inputs, prepare(weights, "").apply))
    return made


def report_quantized() -> None:
    shapes = [[LAYER[at] for at in group] for _ in range(N_LAYERS) for group in JOINED] + [[HEAD]]
    matrices = [[torch.randn(*one, dtype=torch.bfloat16) for one in group] for group in shapes]
    names = dict(zip(("bfloat16", *QUANTIZE), ("", *QUANTIZE), strict=True))
    made = {name: quantized_layers(matrices, flag) for name, flag in names.items()}
    print("\nall layers and the output layer, quantized")
    print(f"{'rows':>5}" + "".join(f"{name:>24}" for name in made))
    for rows in (1, 4, 16, 64, 256):
        took = linear_ms(made, rows)
        columns = [f"{ms:.2f} ({took['bfloat16'] / ms:.2f})" for ms in took.values()]
        print(f"{rows:5}" + "".join(f"{one:>24}" for one in columns), flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", nargs="*", metavar="kernel", help=f"{', '.join(KERNELS)}; all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    given = parser.parse_args()
    for name in given.kernels:
        if name not in KERNELS:
            parser.error(f"no kernel {name!r}: there are {', '.join(KERNELS)}")
    torch.set_num_threads(given.threads)
    report_reads()
    if "attention" in given.kernels or not given.kernels:
        report_attention(getattr(torch, given.dtype))
    if "linear" in given.kernels or not given.kernels:
        report_linears()
    if "quantized" in given.kernels or not given.kernels:
        report_quantized()


if __name__ == "__main__":
    main()

"""Times of the fused decoder's kernels on a GPU, against its measured limits.

    python -m benchmarks.gpu_kernels [--rows 1 4 16 64 128] [--dtype bfloat16]
        [--only products codes others]

Shapes are those of an 8-billion-parameter Llama. First comes the rate of a copy, its bytes counted
both ways. Then, for each product and number of rows, µs and GB/s of weights with their share of
that rate: of our kernels where they take so many rows, and of torch's `linear`. The one that
`device_linear` chooses is marked with a star. Its parts are not added up, which the next kernel
does on its way; gate and up is with its activation in our kernels and without it in torch's.

The same follows for weights in codes, whose bytes are those of the codes and their scales; `many`
is what is done with more rows: the weight is dequantized for torch, or x rounded to e4m3. At last
µs of the kernels between the products. Everything runs over as many layers as make
WEIGHT_BYTES, in one CUDA graph, so that weights come from memory as in a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
from torch.nn.functional import linear

from benchmarks.gpu_attention import rates, timed
from workers.decoder import triton_kernels
from workers.kernels import device_codes, device_linear, triton_linear
from workers.kernels.codes import CodedWeight
from workers.kernels.device_codes import DeviceCodes

WEIGHT_BYTES = 2 << 30
MOST_LAYERS = 32
GEMV_MOST, NARROW_MOST, CODED_MOST = 8, 64, 256
"""Rows up to which our kernels are measured, beyond where they are used."""
BLOCK_SIZE = 16
PARTS = ("products", "codes", "others")


class Sizes(NamedTuple):
    """Sizes of a model."""

    hidden: int = 4096
    intermediate: int = 14336
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 128256

    @property
    def qkv(self) -> int:
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    def products(self) -> dict[str, tuple[int, int, str]]:
        """Return rows and columns of the weights, and the activation."""
        return {
            "qkv": (self.qkv, self.hidden, ""),
            "out": (self.hidden, self.n_heads * self.head_dim, ""),
            "gate and up": (2 * self.intermediate, self.hidden, "silu"),
            "down": (self.hidden, self.intermediate, ""),
            "head": (self.vocabulary, self.hidden, ""),
        }


Work = tuple[str, int, Callable[[], None]]
"""Name, layers, and what runs them."""


def products(
    n: int, k: int, activation: str, rows: int, dtype: torch.dtype, device: str, weight_bytes: int
) -> Iterator[Work]:
    """Yield each way to multiply so many rows with weights [n, k]."""
    n_layers = max(2, min(MOST_LAYERS, weight_bytes // (n * k * dtype.itemsize)))
    weights = [torch.empty(n, k, dtype=dtype, device=device) for _ in range(n_layers)]
    for weight in weights:
        weight.normal_(0, k**-0.5)
    x = torch.randn(rows, k, device=device).to(dtype)
    used = "linear"
    if rows <= device_linear.GEMV_ROWS:
        used = "gemv"
    elif rows <= device_linear.NARROW_ROWS and dtype is not torch.float32:
        used = "narrow"

    def by(kernel: Callable[..., None], n_parts: int) -> None:
        for weight in weights:
            out = x.new_empty((n_parts, rows, n), dtype=torch.float32)
            kernel(
                x.new_empty((1, rows, n // 2)) if activation else out, x, weight, None, activation
            )

    def by_torch() -> None:
        for weight in weights:
            linear(x, weight)

    ways: dict[str, Callable[[], None]] = {"linear": by_torch}
    if rows <= GEMV_MOST:
        ways["gemv"] = partial(by, device_linear.gemv, 1)
    if rows <= NARROW_MOST and dtype is not torch.float32:
        n_parts = 1 if activation else device_linear.parts_of(n, k)
        ways["narrow"] = partial(by, device_linear.narrow, n_parts)
    for name, run in ways.items():
        yield name + ("*" if name == used else ""), n_layers, run


class Form(NamedTuple):
    """What quantized weights are made of."""

    bits: int
    kind: str
    group: int
    """0: all inputs."""
    zeros: bool = False

    def weight(self, n: int, k: int, device: str) -> CodedWeight:
        """Return a weight with any numbers."""
        group = self.group or k
        groups = (n, -(-k // group))
        # No e4m3 of these is NaN.
        most = 1 << min(self.bits, 6)
        return CodedWeight(
            torch.randint(0, most, (n, k), dtype=torch.uint8, device=device),
            torch.full(groups, k**-0.5 / 8, dtype=torch.float16, device=device),
            self.bits,
            group,
            torch.full(groups, 7, dtype=torch.uint8, device=device) if self.zeros else None,
            kind=self.kind,
            table=torch.linspace(-1, 1, 16, device=device) if self.kind == "table" else None,
        )


FORMS = {
    "w4 g128": Form(4, "integer", 128, zeros=True),
    "w4 g32": Form(4, "integer", 32),
    "w8": Form(8, "integer", 0),
    "nf4 g64": Form(4, "table", 64),
    "fp8": Form(8, "e4m3", 0),
    "fp8 b128": Form(8, "e4m3", 128),
}


def coded(
    form: Form,
    shape: tuple[int, int, str],
    rows: int,
    dtype: torch.dtype,
    device: str,
    weight_bytes: int,
) -> tuple[int, list[Work]]:
    """Return the bytes of a weight in codes, of this shape and with this activation, and each way
    to multiply so many rows with it."""
    n, k, activation = shape
    first = DeviceCodes(form.weight(n, k, device), dtype)
    n_bytes = sum(one.nbytes for one in first.tensors)
    n_layers = max(2, min(MOST_LAYERS, weight_bytes // n_bytes))
    layers = [first]
    layers += [DeviceCodes(form.weight(n, k, device), dtype) for _ in range(n_layers - 1)]
    x = torch.randn(rows, k, device=device).to(dtype)
    used = "many"
    if first.is_few(x):
        used = "gemv" if rows <= device_linear.GEMV_ROWS else "narrow"

    def by(kernel: Callable[..., None], n_parts: int) -> None:
        for layer in layers:
            out = x.new_empty((n_parts, rows, n), dtype=torch.float32)
            kernel(x.new_empty((1, rows, n // 2)) if activation else out, x, layer, activation)

    def by_torch() -> None:
        for layer in layers:
            layer.product(x)

    ways: dict[str, Callable[[], None]] = {"many": by_torch}
    if dtype is not torch.float32:
        n_parts = 1 if activation else device_linear.parts_of(n, k)
        if rows <= GEMV_MOST:
            ways["gemv"] = partial(by, device_codes.gemv, 1)
        if rows <= CODED_MOST:
            ways["narrow"] = partial(by, device_codes.narrow, n_parts)
    named = [(name + ("*" if name == used else ""), n_layers, run) for name, run in ways.items()]
    return n_bytes, named


def others(sizes: Sizes, rows: int, dtype: torch.dtype, device: str) -> Iterator[Work]:
    """Yield the kernels of a layer besides products and attention; of the head, `bound`."""

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    hidden, n_layers = sizes.hidden, MOST_LAYERS
    heads = {"N_HEADS": sizes.n_heads, "N_KV_HEADS": sizes.n_kv_heads, "DIM": sizes.head_dim}
    whole = {"SIZE": hidden, "WIDTH": triton.next_power_of_2(hidden), "num_warps": 8}
    residual, norm, x = normal(rows, hidden), normal(hidden), normal(rows, hidden, dtype=dtype)
    # Parts of what few rows leave; 16-bit numbers of cuBLAS where there are many.
    few = rows <= device_linear.NARROW_ROWS and dtype is not torch.float32
    n_parts = device_linear.parts_of(hidden, hidden) if few and rows > 4 else 1
    y = normal(n_parts, rows, hidden, dtype=torch.float32 if few else dtype)
    qkv = normal(n_parts, rows, sizes.qkv, dtype=y.dtype)
    gate_up = normal(rows, 2 * sizes.intermediate, dtype=dtype)
    gated = normal(rows, sizes.intermediate, dtype=dtype)
    positions = torch.arange(rows, device=device)
    half = sizes.head_dim // 2
    turns, frequencies, scales = normal(1, rows, 2, half), normal(1, half), normal(1)
    query = normal(rows, sizes.n_heads, sizes.head_dim, dtype=dtype)
    pool = (rows, sizes.n_kv_heads, BLOCK_SIZE, sizes.head_dim)
    keys, values = normal(*pool, dtype=dtype), normal(*pool, dtype=dtype)
    slots = positions.int() * BLOCK_SIZE
    table, logits = normal(64, hidden, dtype=dtype), normal(rows, sizes.vocabulary)
    ids = positions % 64
    n_all = sizes.n_heads + 2 * sizes.n_kv_heads

    def add_norm() -> None:
        triton_kernels.add_norm[(rows,)](
            x, residual, y, x, norm, norm, 1.0, 1e-5, rows, PARTS=n_parts, Y_NORM=False,
            WANTED=False, **whole,
        )  # fmt: skip

    def place() -> None:
        triton_kernels.place[(rows, triton.cdiv(n_all, 8))](
            query, keys, values, qkv, slots, turns, norm, slots, slots, 1.0, 1.0, 1e-5, rows,
            **heads, WIDTH=triton.next_power_of_2(sizes.head_dim), BLOCK_SIZE=BLOCK_SIZE,
            ROTARY=sizes.head_dim, NORMED=False, PARTS=n_parts, HEADS=8, CODES=0,
        )  # fmt: skip

    def gate() -> None:
        triton_linear.gate[(triton.cdiv(gated.numel(), 1024),)](
            gated, gate_up, gated.numel(), ACTIVATION="silu", SIZE=1024
        )

    def turn() -> None:
        triton_kernels.turn[(rows, 1)](
            turns, positions, frequencies, scales, 0, HALF=half,
            WIDTH=triton.next_power_of_2(half), num_warps=1,
        )  # fmt: skip

    def embed() -> None:
        triton_kernels.embed[(rows,)](
            residual, x, ids, table, norm, 0, 64, 64, 1.0, 1e-5, NORMED=True, **whole
        )

    def bound() -> None:
        triton_kernels.bound[(triton.cdiv(logits.numel(), 2048),)](
            logits, logits.numel(), 1.0, 30.0, CAPPED=True, SIZE=2048
        )

    def repeated(kernel: Callable[[], None]) -> None:
        for _ in range(n_layers):
            kernel()

    for kernel in (add_norm, place, gate, turn, embed, bound):
        yield kernel.__name__, n_layers, partial(repeated, kernel)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 4, 16, 64, 128))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    dtype, sizes = getattr(torch, options.dtype), Sizes()
    copy, _ = rates()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {dtype}")
    print(f"copy {copy / 1e9:.0f} GB/s")

    def show(name: str, rows: int, n_bytes: int, ways: Iterable[Work]) -> None:
        shown = []
        for way, n_layers, run in ways:
            graph, _ = timed(n_layers, run)
            rate = n_bytes / graph
            shown.append(
                f"{way:7s} {graph * 1e6:7.1f} µs {rate / 1e9:5.0f} GB/s ({rate / copy:4.0%})"
            )
        print(f"{name:11s} {rows:3d} rows: {'; '.join(shown)}", flush=True)
        torch.cuda.empty_cache()

    for name, (n, k, activation) in sizes.products().items() if "products" in options.only else ():
        for rows in options.rows:
            ways = products(n, k, activation, rows, dtype, "cuda", WEIGHT_BYTES)
            show(name, rows, n * k * dtype.itemsize, ways)
    for name, shape in sizes.products().items() if "codes" in options.only else ():
        for kind, form in FORMS.items():
            for rows in options.rows:
                n_bytes, found = coded(form, shape, rows, dtype, "cuda", WEIGHT_BYTES)
                floor = f"{n_bytes / copy * 1e6:.1f} µs"
                show(f"{name}, {kind}, at least {floor},", rows, n_bytes, found)
                del found
    for rows in options.rows if "others" in options.only else ():
        times = [
            f"{name} {timed(n_layers, run)[0] * 1e6:.1f}"
            for name, n_layers, run in others(sizes, rows, dtype, "cuda")
        ]
        print(f"µs of {rows:3d} rows: {', '.join(times)}", flush=True)


if __name__ == "__main__":
    main()

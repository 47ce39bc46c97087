"""Triton kernels of linear layers for few rows. device_linear.py launches them.

With few rows a product takes the time that its weights take to arrive: an H200 reads 4.8 TB/s with
a latency of some 0.7 us, so that 3.4 MB, 25 KB a multiprocessor, have to be on their way at any
moment, and twice as much where the memory is busy. Weights are `w` [N, K] in rows, read once, 16
bytes a thread and load; they are marked as the first to leave the caches, which x stays in. What a
row adds up, it adds up in one order, whatever the grid and the other rows.

N and K are numbers of the model; `rows` of x [rows, K] are at most M. A tile is BN rows of weights
and BK of their columns. With an ACTIVATION the rows of `w` are gate, up, gate, up ..., and the
result [rows, N / 2] is activation(gate) * up.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logistic(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        result = x * logistic(x)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is logistic(2 u).
        result = x * logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        result = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    return result


@triton.jit
def finish(
    out, y, bias, biased, first, rows, N, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    M: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Store y [M, BN], columns from `first` on, into `out`; those before `biased` get a bias."""
    n = first + tl.arange(0, BN)
    m = tl.arange(0, M)[:, None]
    if BIAS:
        y += tl.load(bias + n, mask=n < biased, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "":
        tl.store(out + m * N + n[None, :], y.to(out.dtype.element_ty),
                 mask=(m < rows) & (n < N)[None, :])  # fmt: skip
    else:
        gate, up = tl.split(tl.reshape(y, [M, BN // 2, 2]))
        n = first // 2 + tl.arange(0, BN // 2)
        result = (activated(gate, ACTIVATION) * up).to(out.dtype.element_ty)
        tl.store(out + m * (N // 2) + n[None, :], result,
                 mask=(m < rows) & (n < N // 2)[None, :])  # fmt: skip


@triton.jit
def eighths(x, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """Return x [A, B, C * 8] as eight [A, B, C]: the elements of a thread's 16 bytes, apart."""
    low, high = tl.split(tl.reshape(x, [A, B, C, 2, 2, 2]))
    low_low, low_high = tl.split(low)
    high_low, high_high = tl.split(high)
    return tl.split(low_low) + tl.split(low_high) + tl.split(high_low) + tl.split(high_high)


@triton.jit
def weights_of(w, row, k, K, EVEN: tl.constexpr):
    at = w + row[:, None] * K + k[None, :]
    if EVEN:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["rows"])
def gemv(
    out, x, w, bias, rows, N, K, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Multiply at most 4 rows, exact in float32. Grid [ceil(N / BN)].

    Weights go from memory to registers: while a thread multiplies its 64 bytes of a tile, or 128 of
    wide layers, it asks for those of the next. A tile is 8 or 16 KB, and 4 to 12 programs, as their
    registers allow, run on a multiprocessor at once: some 64 KB are on their way. A thread adds up
    its own columns, and the threads of a program are added up at the end.
    """
    first = tl.program_id(0) * BN
    row = tl.minimum(first + tl.arange(0, BN), N - 1).to(tl.int64)
    m = tl.arange(0, M)[:, None]
    acc = tl.zeros([M, BN, BK // 8], tl.float32)
    here = weights_of(w, row, tl.arange(0, BK), K, False)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        then = weights_of(w, row, k + BK, K, False)
        part = tl.load(x + m * K + k[None, :], mask=(m < rows) & (k < K)[None, :], other=0.0)
        ws = eighths(here.to(tl.float32), 1, BN, BK // 8)
        xs = eighths(part.to(tl.float32), M, 1, BK // 8)
        for i in tl.static_range(8):
            acc = tl.fma(ws[i], xs[i], acc)
        here = then
    finish(out, tl.sum(acc, 2), bias, N, first, rows, N, BIAS, ACTIVATION, M, BN)


@triton.jit(do_not_specialize=["rows"])
def narrow(
    out, x, w, bias, rows, N, K, K_PART, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply up to M rows, padded, through tensor cores. Grid [ceil(N / BN), n_parts]; part i is
    over the columns from i * K_PART on, and is `out` [i], to be added up by the reader.

    Tiles of weights and x go through shared memory, STAGES - 1 of them on their way. They are
    multiplied as w x^T, whose rows are many: where BN is 64 or more, Hopper's wgmma takes both
    from there.
    """
    first = tl.program_id(0) * BN
    part = tl.program_id(1)
    row = tl.minimum(first + tl.arange(0, BN), N - 1).to(tl.int64)
    m = tl.arange(0, M)[None, :]
    acc = tl.zeros([BN, M], tl.float32)
    begin = part * K_PART
    for start in tl.range(begin, tl.minimum(begin + K_PART, K), BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        weights = weights_of(w, row, k, K, EVEN)
        there = m < rows
        if not EVEN:
            there = there & (k < K)[:, None]
        xs = tl.load(x + m * K + k[:, None], mask=there, other=0.0)
        acc = tl.dot(weights, xs, acc, input_precision="ieee")
    biased = tl.where(part == 0, N, 0)
    out += part.to(tl.int64) * rows * N
    finish(out, tl.trans(acc), bias, biased, first, rows, N, BIAS, ACTIVATION, M, BN)


@triton.jit
def gate(out, gate_up, n, ACTIVATION: tl.constexpr, SIZE: tl.constexpr):
    """Compute activation(gate) * up of `gate_up` [n, 2], for any number of rows. Grid [ceil(n /
    SIZE)]."""
    first = tl.program_id(0).to(tl.int64) * SIZE
    both = first * 2 + tl.arange(0, SIZE * 2)
    pairs = tl.load(gate_up + both, mask=both < n * 2, other=0.0).to(tl.float32)
    gates, ups = tl.split(tl.reshape(pairs, [SIZE, 2]))
    at = first + tl.arange(0, SIZE)
    result = activated(gates, ACTIVATION) * ups
    tl.store(out + at, result.to(out.dtype.element_ty), mask=at < n)

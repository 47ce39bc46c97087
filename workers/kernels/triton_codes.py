"""Triton kernels of linear layers whose weights are codes of 4 or 8 bits. device_codes.py launches
them; what triton_linear.py says of its kernels holds for these.

A weight [N, K] lies in rows of 16-bit words, a block of 32 words for each 128 codes of 4 bits, or
for each 64 of 8: word j of a block has code j in its lowest bits, above it code 32 + j, and so on.
So one part of all words of a block are the codes of 32 inputs that follow each other, and these are
of one group, as groups are of multiples of 32 inputs. Rows are filled up to whole blocks.

Codes become numbers that 16 bits hold exactly, are multiplied with x, and the sum over a group is
multiplied with its scale, in float32. Entries of a table are rounded to the dtype of x for tensor
cores. `scales` and `zeros` are [groups, N]; GROUP is the inputs of a group, 0: all; SPAN are parts
that have one scale. A table, zeros or a bias that is not there is not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.kernels.triton_linear import eighths, finish

RUN = tl.constexpr(32)
"""Words of a block, and inputs of each of its parts."""
EXPONENT = tl.constexpr(0x4B000000)
"""The bits of 2 ** 23 as a float32, in whose fraction the last bit counts 1."""


@triton.jit
def numbers_of(
    words, zero, table, exponent, PART: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    """Return float32 of one part of int32 `words`, whatever is in the upper half of those: of
    integers less a zero point, of a table its entries, of e4m3 a 256th of the numbers.

    `exponent` is EXPONENT. Kernels that multiply load it from memory: an instruction takes one
    constant, and with the mask there would be two.
    """
    place: tl.constexpr = PART * BITS
    if KIND == "integer":
        # All of this is exact.
        unit: tl.constexpr = 1.0 / (1 << place)
        mask: tl.constexpr = ((1 << BITS) - 1) << place
        number = ((words & mask) | exponent).to(tl.float32, bitcast=True)
        result = number * unit - (zero + 8388608.0 * unit)
    elif KIND == "table":
        result = tl.load(table + ((words >> place) & 15))
    else:
        # As fields of a float16, whose exponents mean 2 ** 8 less.
        tl.static_assert(KIND == "e4m3")
        if PART == 0:
            moved = ((words & 0x80) << 8) | ((words & 0x7F) << 7)
        else:
            moved = (words & 0x8000) | ((words & 0x7F00) >> 1)
        result = moved.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return result


@triton.jit
def scales_of(scales, at, there, KIND: tl.constexpr):
    """Return float32, of what `numbers_of` returns."""
    scale = tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
    if KIND == "e4m3":
        scale *= 256
    return scale


@triton.jit
def zeros_of(zeros, at, there, BITS: tl.constexpr, ZEROS: tl.constexpr):
    """Return float32, of all codes alike where there are no zero points."""
    if ZEROS:
        return tl.load(zeros + at, mask=there, other=0).to(tl.float32)
    return tl.full(at.shape, 1 << (BITS - 1), tl.float32)


@triton.jit
def fourths(x, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """Return x [A, B, C * 4] as four [A, B, C]. If they are pairs of numbers, `eighths` of these
    has the first one of each pair, in the same order, and then the second ones."""
    low, high = tl.split(tl.reshape(x, [A, B, C, 2, 2]))
    return tl.split(low) + tl.split(high)


@triton.jit
def words_of(words, row, at, n_words):
    """Return [rows, at], zeros behind the end."""
    found = words + row[:, None] * n_words + at[None, :]
    return tl.load(found, mask=(at < n_words)[None, :], other=0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["rows"])
def coded_gemv(
    out, x, words, scales, zeros, table, bias, exponent, rows, N, K, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Multiply at most 4 rows, as `triton_linear.gemv` does; a tile is BN rows of BW words, which
    are given as int32, two in one. Grid [ceil(N / BN)]."""
    parts: tl.constexpr = 16 // BITS
    block: tl.constexpr = RUN * parts
    eight: tl.constexpr = BW // 8
    n_words = tl.cdiv(K, block) * RUN
    n_pairs = tl.cdiv(K, block) * (RUN // 2)
    first = tl.program_id(0) * BN
    row = tl.minimum(first + tl.arange(0, BN), N - 1).to(tl.int64)
    m = tl.arange(0, M)[:, None]
    word = tl.arange(0, BW)
    pair = tl.arange(0, BW // 2)
    # Eight words that follow each other are one thread's, and in one block.
    some = tl.arange(0, eight)
    acc = tl.zeros([M, BN, eight], tl.float32)
    exponent = tl.load(exponent)
    if GROUP == 0:
        scale = scales_of(scales, row, row < N, KIND)
        zero = zeros_of(zeros, row, row < N, BITS, ZEROS)[None, :, None]
    here = words_of(words, row, pair, n_pairs)
    for start in range(0, n_words, BW):
        then = words_of(words, row, (start + BW) // 2 + pair, n_pairs)
        pairs = fourths(here, 1, BN, eight)
        for part in tl.static_range(parts):
            begin = start * parts + part * RUN
            k = begin + word // RUN * block + word % RUN
            there = (m < rows) & (k < K)[None, :]
            given = tl.load(x + m * K + k[None, :], mask=there, other=0.0)
            xs = eighths(given.to(tl.float32), M, 1, eight)
            if GROUP > 0:
                if part % SPAN == 0:
                    k_first = (begin + some * 8 // RUN * block)[None, :]
                    at = (k_first // GROUP).to(tl.int64) * N + row[:, None]
                    scale = scales_of(scales, at, k_first < K, KIND)[None]
                    zero = zeros_of(zeros, at, k_first < K, BITS, ZEROS)[None]
                    of_group = tl.zeros([M, BN, eight], tl.float32)
                for i in tl.static_range(8):
                    w = pairs[i % 4] >> (i // 4 * 16)
                    w = numbers_of(w, zero, table, exponent, part, BITS, KIND)
                    of_group = tl.fma(w, xs[i], of_group)
                if part % SPAN == SPAN - 1:
                    acc = tl.fma(of_group, scale, acc)
            else:
                for i in tl.static_range(8):
                    w = pairs[i % 4] >> (i // 4 * 16)
                    w = numbers_of(w, zero, table, exponent, part, BITS, KIND)
                    acc = tl.fma(w, xs[i], acc)
        here = then
    y = tl.sum(acc, 2)
    if GROUP == 0:
        y *= scale[None, :]
    finish(out, y, bias, N, first, rows, N, BIAS, ACTIVATION, M, BN)


@triton.jit
def groups_of(
    scales, zeros, row, first, N, K, BITS: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Return scale, zero, scale, zero ... [rows] of the groups of a block that begins at input
    `first`."""
    found = ()
    for part in tl.static_range(0, 16 // BITS, SPAN):
        begin = first + part * RUN
        group = begin // GROUP if GROUP > 0 else 0
        at = row + tl.cast(group, tl.int64) * N
        there = (row < N) & (begin < K)
        scale = scales_of(scales, at, there, KIND)
        found += (scale, zeros_of(zeros, at, there, BITS, ZEROS))  # type: ignore[assignment]
    return found


@triton.jit(do_not_specialize=["rows"])
def coded_narrow(
    out, x, words, scales, zeros, table, bias, exponent, rows, N, K, W_PART, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, BITS: tl.constexpr, KIND: tl.constexpr, ZEROS: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply M rows, padded, through tensor cores, as `triton_linear.narrow` does. Grid
    [ceil(rows / M), ceil(N / BN), n_parts]; part i is over W_PART words from i * W_PART on, whole
    blocks.

    What goes into tensor cores is loaded STAGES - 1 blocks ahead; scales and zero points, which do
    not, are asked for one block ahead. Codes go in less the middle of all codes, and what a zero
    point is more than that is multiplied with the sum of x, which tensor cores make, too.
    """
    parts: tl.constexpr = 16 // BITS
    middle: tl.constexpr = 1.0 * (1 << (BITS - 1))
    dtype: tl.constexpr = x.dtype.element_ty
    n_words = tl.cdiv(K, RUN * parts) * RUN
    first = tl.program_id(1) * BN
    k_part = tl.program_id(2)
    row = tl.minimum(first + tl.arange(0, BN), N - 1).to(tl.int64)
    before = tl.program_id(0) * M
    m = before + tl.arange(0, M)[None, :]
    run = tl.arange(0, RUN)
    acc = tl.zeros([BN, M], tl.float32)
    of_group = tl.zeros([BN, M], tl.float32)
    of_x = tl.zeros([BN, M], tl.float32)
    ones = tl.full([BN, RUN], 1.0, tl.float32).to(dtype)
    # As a scalar, it would have the numbers go through shared memory on their way.
    exponent = tl.load(exponent + run * 0)[None, :]
    begin = k_part * W_PART
    here = groups_of(
        scales, zeros, row, begin * parts, N, K, BITS, KIND, ZEROS, GROUP, SPAN
    )  # fmt: skip
    for start in tl.range(begin, tl.minimum(begin + W_PART, n_words), RUN, num_stages=STAGES):
        found = words + row[:, None] * n_words + (start + run)[None, :]
        w = tl.load(found, eviction_policy="evict_first").to(tl.int32)
        if GROUP > 0:
            then = groups_of(
                scales, zeros, row, (start + RUN) * parts, N, K, BITS, KIND, ZEROS, GROUP, SPAN
            )  # fmt: skip
        for part in tl.static_range(parts):
            k = start * parts + part * RUN + run
            there = m < rows
            if not EVEN:
                there = there & (k < K)[:, None]
            xs = tl.load(x + m * K + k[:, None], mask=there, other=0.0)
            numbers = numbers_of(w, middle, table, exponent, part, BITS, KIND).to(dtype)
            of_group = tl.dot(numbers, xs, of_group, input_precision="ieee")
            if ZEROS:
                of_x = tl.dot(ones, xs, of_x, input_precision="ieee")
            if GROUP > 0 and part % SPAN == SPAN - 1:
                acc += scaled(of_group, of_x, here, part // SPAN, middle, ZEROS)
                of_group = tl.zeros([BN, M], tl.float32)
                of_x = tl.zeros([BN, M], tl.float32)
        if GROUP > 0:
            here = then
    if GROUP == 0:
        acc = scaled(of_group, of_x, here, 0, middle, ZEROS)
    biased = tl.where(k_part == 0, N, 0)
    out += (k_part.to(tl.int64) * rows + before) * (N if ACTIVATION == "" else N // 2)
    finish(out, tl.trans(acc), bias, biased, first, rows - before, N, BIAS, ACTIVATION, M, BN)


@triton.jit
def scaled(y, of_x, groups, at: tl.constexpr, middle: tl.constexpr, ZEROS: tl.constexpr):
    """Return y [BN, M], a sum over group `at` of `groups`, times its scale; `of_x` is that of x."""
    if ZEROS:
        y = tl.fma((middle - groups[2 * at + 1])[:, None], of_x, y)
    return y * groups[2 * at][:, None]


@triton.jit(do_not_specialize=["first", "n"])
def dequantize(
    out, words, scales, zeros, table, first, n, N, K, BITS: tl.constexpr, KIND: tl.constexpr,
    ZEROS: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Write `n` rows of the weight, from `first` on, into `out` [n, K]: number times scale in
    float32, rounded once. Grid [ceil(n / BN), ceil(words of a row / BW)]."""
    parts: tl.constexpr = 16 // BITS
    block: tl.constexpr = RUN * parts
    n_words = tl.cdiv(K, block) * RUN
    own = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.minimum(first + own, N - 1).to(tl.int64)
    word = tl.program_id(1) * BW + tl.arange(0, BW)
    w = words_of(words, row, word, n_words).to(tl.int32)
    for part in tl.static_range(parts):
        k = (word // RUN * block + part * RUN + word % RUN)[None, :]
        at = row[:, None] + k * 0
        if GROUP > 0:
            at += (k // GROUP).to(tl.int64) * N
        there = (own < n)[:, None] & (k < K)
        number = numbers_of(
            w, zeros_of(zeros, at, there, BITS, ZEROS), table, EXPONENT, part, BITS, KIND
        )
        if KIND == "e4m3":
            number *= 256
        number *= tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
        to = out + own.to(tl.int64)[:, None] * K + k
        tl.store(to, number.to(out.dtype.element_ty), mask=there)


@triton.jit
def quantize_rows(out, scales, x, K, SIZE: tl.constexpr):
    """Round x [rows, K] to e4m3, each row by its largest number: codes times `scales` [rows] are
    x. Inputs of `out` lie as codes of 8 bits do, byte by byte, with zeros at the end. Grid [rows].
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * K
    largest = tl.zeros([SIZE], tl.float32)
    for start in range(0, K, SIZE):
        k = start + tl.arange(0, SIZE)
        part = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(part))
    top = tl.max(largest, 0)
    scale = tl.where(top > 0, top / 448, 1.0)
    tl.store(scales + row, scale)
    n_bytes = tl.cdiv(K, 2 * RUN) * 2 * RUN
    for start in range(0, n_bytes, SIZE):
        at = start + tl.arange(0, SIZE)
        k = at // (2 * RUN) * (2 * RUN) + at % 2 * RUN + at % (2 * RUN) // 2
        part = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32) / scale
        tl.store(out + row * n_bytes + at, part.to(out.dtype.element_ty), mask=at < n_bytes)

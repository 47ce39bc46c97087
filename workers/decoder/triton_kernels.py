"""Triton kernels of the fused decoder besides its products and attention. device.py launches them.

The residual stream, float32 [n_tokens, SIZE], stays in float32; what a matrix is multiplied with,
queries, keys and values are rounded to their dtype once, where they are made. Norms are float32
[SIZE]. What a product left is [PARTS, n_tokens, columns], in any dtype, and its parts are added up
in order.

What is in capitals is known when a kernel is compiled; WIDTH is SIZE, or DIM, padded to a power of
two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.attention.triton_codes import store_codes


@triton.jit
def normed(x, norm, eps, SIZE: tl.constexpr):
    """Normalize a row x, zeros where it is padded, by root mean square."""
    return norm * (x * tl.rsqrt(tl.sum(x * x) / SIZE + eps))


@triton.jit
def embed(
    residual, out, ids, table, norm, first, n_here, n_ids, scale, eps, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Write rows of `table` [n_here, SIZE], which begins with id `first`, to the residual stream,
    and with NORMED the input of the first layer to `out`. Grid [n_tokens].

    An id of another rank gives zeros; one that none of the `n_ids` is gives NaN, which stays in its
    row, so that its logits tell.
    """
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    there = d < SIZE
    id = tl.load(ids + token)
    at = id - first
    # As a size, for Triton's interpreter does not mask rows with scalars.
    size = tl.where((at >= 0) & (at < n_here), SIZE, 0)
    x = tl.load(table + at * SIZE + d, mask=d < size, other=0.0).to(tl.float32) * scale
    x += tl.where((id < 0) | (id >= n_ids), float("nan"), 0.0)
    tl.store(residual + token * SIZE + d, x, mask=there)
    if NORMED:
        x = normed(x, tl.load(norm + d, mask=there, other=0.0), eps, SIZE)
        tl.store(out + token * SIZE + d, x.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["n_tokens"])
def add_norm(
    out, residual, y, wanted, y_norm, norm, scale, eps, n_tokens, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, Y_NORM: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Compute residual += scale * y, y being normed before with Y_NORM; out = norm(residual). Grid
    [n_tokens], or with WANTED [n_wanted]: then only those tokens go into `out`, and the residual
    stream stays as it was. No PARTS: nothing is added."""
    row = tl.program_id(0).to(tl.int64)
    token = row
    if WANTED:
        token = tl.load(wanted + row)
    d = tl.arange(0, WIDTH)
    there = d < SIZE
    x = tl.load(residual + token * SIZE + d, mask=there, other=0.0)
    if PARTS > 0:
        added = tl.load(y + token * SIZE + d, mask=there, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            at = (part * n_tokens + token) * SIZE
            added += tl.load(y + at + d, mask=there, other=0.0).to(tl.float32)
        if Y_NORM:
            added = normed(added, tl.load(y_norm + d, mask=there, other=0.0), eps, SIZE)
        x += scale * added
        if not WANTED:
            tl.store(residual + token * SIZE + d, x, mask=there)
    x = normed(x, tl.load(norm + d, mask=there, other=0.0), eps, SIZE)
    tl.store(out + row * SIZE + d, x.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["stride"])
def turn(turns, positions, frequencies, scales, stride, HALF: tl.constexpr, WIDTH: tl.constexpr):
    """Compute cosines and sines, [n_ropes, n_tokens, 2, HALF], of the angles of `positions` and
    `frequencies` [n_ropes, HALF], times `scales` [n_ropes]. Grid [n_tokens, n_ropes]. A token's
    positions by frequency are `stride` apart; 0: there is one. Sine and cosine are those of CUDA's
    library, exact for angles of any size."""
    token = tl.program_id(0).to(tl.int64)
    rope = tl.program_id(1)
    i = tl.arange(0, WIDTH)
    there = i < HALF
    position = tl.load(positions + i * stride + token, mask=there, other=0).to(tl.float32)
    angle = position * tl.load(frequencies + rope * HALF + i, mask=there, other=0.0)
    scale = tl.load(scales + rope)
    at = (rope * tl.num_programs(0) + token) * 2 * HALF + i
    tl.store(turns + at, tl.cos(angle) * scale, mask=there)
    tl.store(turns + at + HALF, tl.sin(angle) * scale, mask=there)


@triton.jit
def heads_of(row, d, there, qkv, part_size, PARTS: tl.constexpr):
    """Return float32 of elements `d` of the heads that begin at `row`."""
    x = tl.load(qkv + row + d, mask=there, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(qkv + part * part_size + row + d, mask=there, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["n_tokens"])
def place(
    q, keys, values, qkv, slots, turns, norms, key_scales, value_scales, key_scale, value_scale,
    eps, n_tokens, N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY: tl.constexpr, NORMED: tl.constexpr,
    PARTS: tl.constexpr, HEADS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Queries and keys normed (with NORMED, `norms` [2, DIM]) and rotated, the first ROTARY of
    their elements, as `turns` [n_tokens, 2, ROTARY / 2] says; queries to `q` [n_tokens, N_HEADS,
    DIM], keys and values to their `slots` in the pools, unless negative; with CODES as those, with
    their scales, see attention/triton_codes.py. Grid [n_tokens, ceil of all heads / HEADS]; `qkv`
    has the heads of queries, keys and values side by side."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    n_turned: tl.constexpr = N_HEADS + N_KV_HEADS
    n_all: tl.constexpr = n_turned + N_KV_HEADS
    d = tl.arange(0, WIDTH)[None, :]
    there = (head < n_all) & (d < DIM)
    row = (token * n_all + head) * DIM
    part_size = n_tokens.to(tl.int64) * n_all * DIM
    x = heads_of(row, d, there, qkv, part_size, PARTS)
    shrink = tl.full([HEADS, 1], 1.0, tl.float32)
    which = tl.where(head < N_HEADS, 0, DIM)
    if NORMED:
        shrink = tl.rsqrt(tl.sum(x * x, 1)[:, None] / DIM + eps)
        x = tl.where(head < n_turned, x * shrink * tl.load(norms + which + d, mask=there), x)
    if ROTARY > 0:
        half: tl.constexpr = ROTARY // 2
        # Element i is turned with i + half, and that with it.
        other = tl.where(d < half, d + half, d - half)
        turned = there & (head < n_turned) & (d < ROTARY)
        y = heads_of(row, other, turned, qkv, part_size, PARTS)
        if NORMED:
            y = y * shrink * tl.load(norms + which + other, mask=turned, other=0.0)
        angle = turns + token * ROTARY + tl.where(d < half, d, d - half)
        cos = tl.load(angle, mask=d < ROTARY, other=1.0)
        sin = tl.load(angle + half, mask=d < ROTARY, other=0.0)
        x = tl.where(turned, x * cos + y * tl.where(d < half, -sin, sin), x)
    slot = tl.load(slots + token).to(tl.int64)
    written = there & (head < tl.where(slot >= 0, n_all, 0))
    kv_head = tl.where(head < n_turned, head - N_HEADS, head - n_turned)
    kv_row = (slot // BLOCK_SIZE * N_KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
    at = kv_row * DIM + d
    result = x.to(q.dtype.element_ty)
    tl.store(q + (token * N_HEADS + head) * DIM + d, result, mask=there & (head < N_HEADS))
    if CODES > 0:
        x = tl.where(there, x, 0.0)
        kept = head < tl.where(slot >= 0, n_all, 0)
        is_key = kept & (head >= N_HEADS) & (head < n_turned)
        store_codes(keys, key_scales, x, kv_row, is_key, d, key_scale, DIM, CODES)
        is_value = kept & (head >= n_turned)
        store_codes(values, value_scales, x, kv_row, is_value, d, value_scale, DIM, CODES)
    else:
        tl.store(keys + at, result, mask=written & (head >= N_HEADS) & (head < n_turned))
        tl.store(values + at, result, mask=written & (head >= n_turned))


@triton.jit
def bound(logits, n, scale, cap, CAPPED: tl.constexpr, SIZE: tl.constexpr):
    """Scale float32 `logits` [n] in place, and with CAPPED apply cap * tanh(logit / cap). Grid
    [ceil(n / SIZE)]."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    x = tl.load(logits + at, mask=at < n, other=0.0) * scale
    if CAPPED:
        small = tl.exp(-2 * tl.abs(x) / cap)
        bounded = cap * (1 - small) / (1 + small)
        x = tl.where(x < 0, -bounded, bounded)
    tl.store(logits + at, x, mask=at < n)

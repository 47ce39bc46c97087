"""Triton kernels of paged attention. triton_paged.py launches them.

The pools are [n_blocks, n_kv_heads, BLOCK_SIZE, DIM]; rows of a pool are addressed in 64 bits. A
tile's M query vectors are positions times the GROUP heads that share a key-value head, so that keys
and values are read once for the whole group. Vectors of the tile beyond those there are repeat the
last one and are not stored. Scores are kept in units of log2, for exp2.

Keys are walked in steps of N from a multiple of N on, whatever the batch and the chunk, so that
what a position attends to is added up in the same order however it came to be computed. Products
in float32 are exact (no TF32). Which positions were written is decided by position alone: what an
unwritten slot holds is never read.

What is in capitals is known when a kernel is compiled; WIDTH is DIM padded to a power of two.
WINDOW, SOFTCAP and CHUNK of zero are none. SINKS and SLOPES say whether there are `sinks` and
`slopes`, float32 [n_heads]; where not, they are never read.

With CODES, see triton_codes.py, a pool has codes: `key_scale` and `value_scale` are those of all of
them, or `key_scales` and `value_scales`, float32 [n_blocks, n_kv_heads, BLOCK_SIZE], those of rows.
Keys and values are rounded to the dtype of the queries as soon as they are numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.attention.triton_codes import INT8, numbers_of, store_codes

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def write(
    keys,
    values,
    k,
    v,
    slots,
    k_token,
    k_head,
    v_token,
    v_head,
    key_scales,
    value_scales,
    key_scale,
    value_scale,
    N_KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
):
    """Put a token's keys and values, of all heads, into its slot, unless that is negative. Grid
    [n_tokens]; HEADS is N_KV_HEADS padded to a power of two."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, WIDTH)[None, :]
    there = (head < N_KV_HEADS) & (d < DIM)
    row = (slot // BLOCK_SIZE * N_KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    new_k = tl.load(k + token * k_token + head * k_head + d, mask=there, other=0.0)
    new_v = tl.load(v + token * v_token + head * v_head + d, mask=there, other=0.0)
    if CODES > 0:
        kept = head < N_KV_HEADS
        new_k = new_k.to(tl.float32)
        new_v = new_v.to(tl.float32)
        store_codes(keys, key_scales, new_k, row, kept, d, key_scale, DIM, CODES)
        store_codes(values, value_scales, new_v, row, kept, d, value_scale, DIM, CODES)
    else:
        tl.store(keys + row * DIM + d, new_k, mask=there)
        tl.store(values + row * DIM + d, new_v, mask=there)


@triton.jit
def first_seen(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that a query at `position` sees."""
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first


@triton.jit
def attended(
    q,
    positions,
    first,
    last,
    keys,
    values,
    table,
    kv_head,
    scale,
    slope,
    key_scales,
    value_scales,
    key_scale,
    value_scale,
    N_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CHUNK: tl.constexpr,
    SLOPES: tl.constexpr,
    CODES: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """q [M, WIDTH] at `positions` [M], each with its `slope` [M], over the key positions from
    `first`, a multiple of N, to before `last`: the attended values [M, WIDTH] and the log2 of the
    sum of the exponentials [M], both float32. Each query must see a key."""
    d = tl.arange(0, WIDTH)
    in_dim = d < DIM
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, WIDTH], tl.float32)
    for start in range(first, last, N):
        position = start + tl.arange(0, N)
        written = position < last
        block = tl.load(table + position // BLOCK_SIZE, mask=written, other=0).to(tl.int64)
        row = (block * N_KV_HEADS + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE
        k = tl.load(
            keys + row[None, :] * DIM + d[:, None],
            mask=written[None, :] & in_dim[:, None],
            other=0.0,
        )
        if CODES == INT8:
            own = tl.load(key_scales + row, mask=written, other=0.0)
            k = numbers_of(k, own[None, :], CODES).to(q.dtype)
        elif CODES > 0:
            k = numbers_of(k, key_scale, CODES).to(q.dtype)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP > 0:
            # tanh, which Triton has only for compiled kernels.
            small = tl.exp2(tl.abs(scores) * (-2 * LOG2E / SOFTCAP))
            bounded = SOFTCAP * (1 - small) / (1 + small)
            scores = tl.where(scores < 0, -bounded, bounded)
        if SLOPES:
            scores += slope[:, None] * (position[None, :] - positions[:, None]).to(tl.float32)
        seen = written[None, :] & (position[None, :] <= positions[:, None])
        if WINDOW > 0:
            seen = seen & (position[None, :] > positions[:, None] - WINDOW)
        if CHUNK > 0:
            seen = seen & (position[None, :] >= (positions // CHUNK * CHUNK)[:, None])
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        # A query that has seen nothing yet has no peak, and inf - inf is NaN.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - level[:, None])
        shrink = tl.exp2(peak - level)
        v = tl.load(
            values + row[:, None] * DIM + d[None, :],
            mask=written[:, None] & in_dim[None, :],
            other=0.0,
        )
        if CODES == INT8:
            own = tl.load(value_scales + row, mask=written, other=0.0)
            v = numbers_of(v, own[:, None], CODES).to(q.dtype)
        elif CODES > 0:
            v = numbers_of(v, value_scale, CODES).to(q.dtype)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = higher
    return sums / total[:, None], peak + tl.log2(total)


@triton.jit
def prefill(
    out,
    q,
    keys,
    values,
    tables,
    tiles,
    q_token,
    q_head,
    scale,
    sinks,
    slopes,
    key_scales,
    value_scales,
    key_scale,
    value_scale,
    GROUP: tl.constexpr,
    N_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CHUNK: tl.constexpr,
    SINKS: tl.constexpr,
    SLOPES: tl.constexpr,
    CODES: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Attention of some positions of a chunk. Grid [n_tiles, n_kv_heads]; `tiles` are those of
    `DeviceBatch`, of at most M // GROUP positions."""
    tile = tiles + tl.program_id(0) * 4
    kv_head = tl.program_id(1)
    token = tl.load(tile).to(tl.int64)
    n = tl.load(tile + 1)
    length = tl.load(tile + 2)
    table = tables + tl.load(tile + 3)
    m = tl.arange(0, M)
    index = tl.minimum(m // GROUP, n - 1)
    head = kv_head * GROUP + m % GROUP
    d = tl.arange(0, WIDTH)
    in_dim = (d < DIM)[None, :]
    x = tl.load(
        q + ((token + index) * q_token + head * q_head)[:, None] + d[None, :],
        mask=in_dim,
        other=0.0,
    )
    positions = length - n + index
    slope = m
    if SLOPES:
        slope = tl.load(slopes + head)
    result, log = attended(
        x,
        positions,
        first_seen(length - n, WINDOW, CHUNK) // N * N,
        length,
        keys,
        values,
        table,
        kv_head,
        scale,
        slope,
        key_scales,
        value_scales,
        key_scale,
        value_scale,
        N_KV_HEADS,
        BLOCK_SIZE,
        DIM,
        WIDTH,
        WINDOW,
        SOFTCAP,
        CHUNK,
        SLOPES,
        CODES,
        M,
        N,
    )
    if SINKS:
        result = result / (1 + tl.exp2(tl.load(sinks + head) * LOG2E - log))[:, None]
    at = ((token + index) * (N_KV_HEADS * GROUP) + head)[:, None] * DIM + d[None, :]
    there = (m < n * GROUP)[:, None] & in_dim
    tl.store(out + at, result.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["n_decode"])
def decode(
    partial,
    logs,
    q,
    keys,
    values,
    tables,
    lengths,
    starts,
    parts,
    q_token,
    q_head,
    scale,
    slopes,
    key_scales,
    value_scales,
    key_scale,
    value_scale,
    n_decode,
    GROUP: tl.constexpr,
    N_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CHUNK: tl.constexpr,
    SLOPES: tl.constexpr,
    CODES: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SPLIT: tl.constexpr,
    SEEN: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Attention of decode rows to the splits of their contexts: split s of a row is its positions
    from SPLIT * s on. Grid [any number of programs, n_kv_heads]: how many there are changes who
    computes what, and nothing else.

    The tensors are those of `DeviceBatch`. The results of a split are number `parts` of its row,
    and s, of `partial`, float32 [parts, n_heads, DIM], and `logs`, float32 [parts, n_heads] in
    log2. With a window or chunks, a row has at most SEEN splits that it sees any of; those of the
    others are not written."""
    kv_head = tl.program_id(1)
    n_items = n_decode * SEEN if SEEN > 0 else tl.load(parts + n_decode)
    m = tl.arange(0, M)
    head = kv_head * GROUP + tl.minimum(m, GROUP - 1)
    d = tl.arange(0, WIDTH)
    in_dim = (d < DIM)[None, :]
    slope = m
    if SLOPES:
        slope = tl.load(slopes + head)
    for item in range(tl.program_id(0), n_items, tl.num_programs(0)):
        if SEEN > 0:
            row = item // SEEN
        else:
            # As many rows as end before it. Those without a split end where they begin.
            row = item * 0
            for some in range(0, n_decode, AT_ONCE):
                other = some + tl.arange(0, AT_ONCE)
                ends = tl.load(parts + 1 + other, mask=other < n_decode, other=n_items)
                row += tl.sum((ends <= item).to(tl.int32), 0)
        length = tl.load(lengths + row)
        first = first_seen(tl.maximum(length - 1, 0), WINDOW, CHUNK)
        part = tl.load(parts + row)
        split = first // SPLIT + item % SEEN if SEEN > 0 else item - part
        begin = split * SPLIT
        if begin < length:
            x = tl.load(
                q + row.to(tl.int64) * q_token + (head * q_head)[:, None] + d[None, :],
                mask=in_dim,
                other=0.0,
            )
            result, log = attended(
                x,
                tl.full([M], 0, tl.int32) + (length - 1),
                tl.maximum(begin, first // N * N),
                tl.minimum(begin + SPLIT, length),
                keys,
                values,
                tables + tl.load(starts + row),
                kv_head,
                scale,
                slope,
                key_scales,
                value_scales,
                key_scale,
                value_scale,
                N_KV_HEADS,
                BLOCK_SIZE,
                DIM,
                WIDTH,
                WINDOW,
                SOFTCAP,
                CHUNK,
                SLOPES,
                CODES,
                M,
                N,
            )
            at = (part + split).to(tl.int64) * (N_KV_HEADS * GROUP) + head
            there = m < GROUP
            tl.store(logs + at, log, mask=there)
            tl.store(
                partial + at[:, None] * DIM + d[None, :],
                result,
                mask=there[:, None] & in_dim,
            )


@triton.jit
def combine(
    out,
    partial,
    logs,
    lengths,
    parts,
    sinks,
    N_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The splits that a row sees put together, for a head. Grid [n_decode, N_HEADS]; `partial` and
    `logs` as `decode` left them, `out` [n_decode, N_HEADS, DIM]: zeros for a row of length 0."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.load(parts + row).to(tl.int64)
    length = tl.load(lengths + row)
    first = first_seen(tl.maximum(length - 1, 0), WINDOW, CHUNK) // SPLIT
    n = tl.cdiv(length, SPLIT)
    d = tl.arange(0, WIDTH)
    in_dim = d < DIM
    peak = float("-inf")
    total = 0.0
    sums = tl.zeros([WIDTH], tl.float32)
    for start in range(first, n, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        there = split < n
        index = (part + split) * N_HEADS + head
        log = tl.load(logs + index, mask=there, other=float("-inf"))
        values = tl.load(
            partial + index[:, None] * DIM + d[None, :],
            mask=there[:, None] & in_dim[None, :],
            other=0.0,
        )
        higher = tl.maximum(peak, tl.max(log, 0))
        weights = tl.exp2(log - higher)
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 0)
        sums = sums * shrink + tl.sum(values * weights[:, None], 0)
        peak = higher
    if SINKS:
        total += tl.exp2(tl.load(sinks + head) * LOG2E - peak)
    # A row that does not exist has zeros.
    result = sums / tl.where(length > 0, total, 1.0)
    tl.store(out + (row * N_HEADS + head) * DIM + d, result.to(out.dtype.element_ty), mask=in_dim)

"""Find where a row is cut by top-k, top-p and min-p, and draw from what is kept: one program a row.

Nothing is sorted. Where the cut is, is a depth that is searched for, by sums over the tokens that
are less deep than some. A row's tokens lie in groups of 2**GROUP_BITS whose largest logit is known,
so that the search can do without the groups that lie deeper than all that is kept.

What is in capitals is known when a kernel is compiled. V is the size of the vocabulary; GROUPS is
N_GROUPS padded to a power of two. `items` has room for N_GROUPS groups, then for ROOM tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.sampling.triton_scores import (
    MIN_SCORE,
    TOP_K,
    TOP_P,
    UNIT,
    add_gumbel_noise,
    depths,
    double,
    masses,
    risen,
    scores,
)

INFINITE = tl.constexpr(0x7F800000)
"""The depth of a masked token."""
DEEPEST = tl.constexpr(0x7F7FFFFF)
MASSLESS = tl.constexpr(0x41E40000)
"""The depth of -28.5, where mass rounds to 0."""
LEAST = tl.constexpr(-(2**31))
MANY = tl.constexpr(8192)
"""Number of tokens above which it pays to write the remaining ones to a list, once."""
BITS = tl.constexpr(19)
"""Leading bits of a depth that groups are searched for; the others are FINE."""
FINE = tl.constexpr(2**12 - 1)
SAFE = tl.constexpr(1 - 2.0**-16)
"""Makes a sum in float32 a lower bound."""


@triton.jit
def listed(
    items,
    groups,
    peak,
    temperature,
    need,
    by_count,
    most,
    N_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write to `items`, by rising number, the groups that reach as far up as is needed; return
    their number, and a depth within which all of need lies.

    The depth is one within which the groups' likeliest tokens alone come to `need`, a number of
    tokens or a mass, or `most` if that is less.
    """
    group = tl.arange(0, GROUPS)
    images = tl.load(groups + group, mask=group < N_GROUPS, other=LEAST)
    x = tl.where(images == LEAST, float("-inf"), risen(images))
    score = tl.div_rn(x - peak, temperature)
    depth = depths(score)
    worth = tl.where(by_count, 1.0, tl.exp(score) * SAFE)
    found = 0
    for step in range(BITS):
        tried = found + (1 << (30 - step))
        within = tl.sum(tl.where(depth < tried, worth, 0.0), 0)
        found = tl.where(within < need, tried, found)
    end = tl.minimum(found + FINE, most)
    reaching = (depth <= end).to(tl.int32)
    tl.store(items + tl.cumsum(reaching, 0) - 1, group, mask=reaching != 0)
    # All threads read what each of them has written.
    tl.debug_barrier()
    return tl.sum(reaching, 0), end


@triton.jit
def tokens(items, n_items, bits, start, V: tl.constexpr, AT_ONCE: tl.constexpr):
    """Return AT_ONCE ids of the tokens in `items`, groups of 2**bits tokens, from index `start`
    among them on; and which of them exist."""
    place = start + tl.arange(0, AT_ONCE)
    there = place < (n_items << bits)
    ids = tl.load(items + (place >> bits), mask=there, other=0) << bits
    ids += place & ((1 << bits) - 1)
    return ids, there & (ids < V)


@triton.jit
def summed(
    logits,
    items,
    n_items,
    bits,
    peak,
    temperature,
    pivots,
    BY_MASS: tl.constexpr,
    V: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Return for each of the depths `pivots` the number of tokens no deeper, or their mass, int64;
    the deepest of them; the least deep of the others."""
    sums = tl.zeros([PIVOTS, AT_ONCE], tl.int64)
    last = tl.full([PIVOTS, AT_ONCE], -1, tl.int32)
    following = tl.full([PIVOTS, AT_ONCE], INFINITE, tl.int32)
    for start in range(0, n_items << bits, AT_ONCE):
        ids, there = tokens(items, n_items, bits, start, V, AT_ONCE)
        score = scores(logits, ids, there, peak, temperature)
        depth = depths(score)[None, :]
        within = depth <= pivots[:, None]
        if BY_MASS:
            sums += tl.where(within, masses(score)[None, :], 0)
        else:
            sums += within.to(tl.int64)
        last = tl.maximum(last, tl.where(within, depth, -1))
        following = tl.minimum(following, tl.where(within, INFINITE, depth))
    return tl.sum(sums, 1), tl.max(last, 1), tl.min(following, 1)


@triton.jit
def picked_out(
    kept,
    room,
    logits,
    items,
    n_items,
    bits,
    peak,
    temperature,
    low,
    high,
    V: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Write to `kept`, up to `room` of them, the ids of the tokens deeper than `low` and no deeper
    than `high`, rising; return their number."""
    n = 0
    for start in range(0, n_items << bits, AT_ONCE):
        ids, there = tokens(items, n_items, bits, start, V, AT_ONCE)
        depth = depths(scores(logits, ids, there, peak, temperature))
        wanted = ((depth > low) & (depth <= high)).to(tl.int32)
        place = n + tl.cumsum(wanted, 0) - 1
        tl.store(kept + place, ids, mask=(wanted != 0) & (place < room))
        n += tl.sum(wanted, 0)
    tl.debug_barrier()
    return n


@triton.jit
def search(
    logits,
    items,
    n_items,
    peak,
    temperature,
    end,
    need,
    BY_MASS: tl.constexpr,
    V: tl.constexpr,
    N_GROUPS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    ROOM: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Return the least depth within which lie tokens for `need` (int64, at least 1), or `end` if
    none is; what lies before that depth, and what within it, or the largest int64 if that was not
    seen.

    What lies within `low` is less than needed; `high` is the depth of a token within which lies
    enough, or `end`. Each round sums up to some depths between and goes on between the two tokens
    next to where it is: among many tokens, with these alone.
    """
    low, high = -1, end
    before = tl.full([], 0, tl.int64)
    after = tl.full([], 2**63 - 1, tl.int64)
    nth = tl.arange(0, PIVOTS) + 1
    # First evenly by score: depths are logarithms, and nearly all of them lie next to 0.
    reach = tl.minimum(end, MASSLESS).to(tl.float32, bitcast=True)
    pivots = (nth.to(tl.float32) * (reach / PIVOTS)).to(tl.int32, bitcast=True)
    first, bits = 0, GROUP_BITS
    left_out = before
    while high - low > 1:
        sums, last, following = summed(
            logits,
            items + first,
            n_items,
            bits,
            peak,
            temperature,
            pivots,
            BY_MASS,
            V,
            AT_ONCE,
            PIVOTS,
        )
        sums += left_out
        short = sums < need
        before = tl.maximum(before, tl.max(tl.where(short, sums, 0), 0))
        after = tl.minimum(after, tl.min(tl.where(short, 2**63 - 1, sums), 0))
        high = tl.minimum(high, tl.min(tl.where(short, DEEPEST, last), 0))
        low = tl.maximum(low, tl.max(tl.where(short, following - 1, -1), 0))
        low = tl.minimum(low, high - 1)
        pivots = low + ((high - low).to(tl.int64) * nth // (PIVOTS + 1)).to(tl.int32)
        if (bits > 0) & ((n_items << bits) > MANY) & (high - low > 1):
            n = picked_out(
                items + N_GROUPS,
                ROOM,
                logits,
                items,
                n_items,
                bits,
                peak,
                temperature,
                low,
                high,
                V,
                4 * AT_ONCE,
            )
            if n <= ROOM:
                first, bits, n_items, left_out = N_GROUPS, 0, n, before
    return high, before, after


@triton.jit
def last_tie(
    logits,
    items,
    n_items,
    peak,
    temperature,
    tied,
    n_kept,
    V: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Return the id of the `n_kept`-th token at the depth `tied`, by rising id."""
    seen = 0
    found = 0
    for start in range(0, n_items << GROUP_BITS, AT_ONCE):
        ids, there = tokens(items, n_items, GROUP_BITS, start, V, AT_ONCE)
        ties = depths(scores(logits, ids, there, peak, temperature)) == tied
        place = seen + tl.cumsum(ties.to(tl.int32), 0)
        found = tl.maximum(found, tl.max(tl.where(ties & (place <= n_kept), ids, 0), 0))
        seen += tl.sum(ties.to(tl.int32), 0)
    return found


@triton.jit
def cut(
    logits,
    items,
    groups,
    numbers,
    peak,
    temperature,
    total,
    V: tl.constexpr,
    N_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    ROOM: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Return the token of a truncated row, and the sum of exp(score), float64, of what is kept of
    it. `total`, float64, is that of the vocabulary."""
    top_k = tl.load(numbers + TOP_K)
    top_p = double(numbers + TOP_P)
    min_score = double(numbers + MIN_SCORE)
    by_count = top_k < V
    need = tl.where(top_p < 1, (top_p * total).to(tl.float32), float("inf"))
    need = tl.where(by_count, top_k.to(tl.float32), need)
    # Top-p counts the mass of all that top-k keeps, be it less likely than min-p asks for.
    most = tl.minimum(depths(min_score.to(tl.float32)), DEEPEST)
    most = tl.where(by_count, DEEPEST, most)
    n_items, end = listed(items, groups, peak, temperature, need, by_count, most, N_GROUPS, GROUPS)
    if by_count:
        end, _, _ = search(
            logits,
            items,
            n_items,
            peak,
            temperature,
            end,
            top_k.to(tl.int64),
            False,
            V,
            N_GROUPS,
            GROUP_BITS,
            ROOM,
            AT_ONCE,
            PIVOTS,
        )
    last_id = V
    if top_p < 1:
        mass = (total * UNIT).to(tl.int64)
        if by_count:
            pivots = tl.full([PIVOTS], 0, tl.int32) + end
            sums, _, _ = summed(
                logits,
                items,
                n_items,
                GROUP_BITS,
                peak,
                temperature,
                pivots,
                True,
                V,
                AT_ONCE,
                PIVOTS,
            )
            mass = tl.max(sums, 0)
        # A token is kept while the mass before it is under top_p, so the first always is.
        bound = tl.ceil(top_p * mass.to(tl.float64)).to(tl.int64)
        end, before, within = search(
            logits,
            items,
            n_items,
            peak,
            temperature,
            end,
            bound,
            True,
            V,
            N_GROUPS,
            GROUP_BITS,
            ROOM,
            AT_ONCE,
            PIVOTS,
        )
        each = tl.maximum(masses(-end.to(tl.float32, bitcast=True)), 1)
        n_kept = (bound - before + each - 1) // each
        if within - before > n_kept * each:
            last_id = last_tie(
                logits,
                items,
                n_items,
                peak,
                temperature,
                end,
                tl.minimum(n_kept, V).to(tl.int32),
                V,
                GROUP_BITS,
                AT_ONCE,
            )
    best = tl.full([AT_ONCE], float("-inf"), tl.float32)
    winner = tl.full([AT_ONCE], V - 1, tl.int32)
    kept_mass = tl.zeros([AT_ONCE], tl.int64)
    for start in range(0, n_items << GROUP_BITS, AT_ONCE):
        ids, there = tokens(items, n_items, GROUP_BITS, start, V, AT_ONCE)
        score = scores(logits, ids, there, peak, temperature)
        depth = depths(score)
        kept = (depth < end) | ((depth == end) & (ids <= last_id))
        kept = kept & (score.to(tl.float64) >= min_score)
        kept_mass += tl.where(kept, masses(score), 0)
        values = tl.where(kept, add_gumbel_noise(score, ids, numbers), float("-inf"))
        winner = tl.where(values > best, ids, winner)
        best = tl.maximum(best, values)
    token = tl.min(tl.where(best == tl.max(best, 0), winner, V - 1), 0)
    return token, tl.sum(kept_mass, 0).to(tl.float64) / UNIT

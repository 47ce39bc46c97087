"""The Triton kernels that sample without a wait for the device. device.py launches them, in this
order, and says what they cost.

What is drawn is what exponential_race.py and truncation.py draw: noise by token id; of a row's
tokens, by falling score and rising id, those that top-k, top-p and min-p keep, mass being counted
in integers.

What is in capitals is known when a kernel is compiled. GROUPS and TILES are N_GROUPS and N_TILES
padded to a power of two. `numbers` is int32 [n, WIDTH].
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.sampling.triton_scores import (
    DRAWS,
    MODE,
    TRUNCATES,
    add_gumbel_noise,
    risen,
    rising,
    scores,
    temperature_of,
)
from workers.sampling.triton_search import LEAST, cut


@triton.jit
def tile_argmax(
    groups,
    peaks,
    places,
    logits,
    logits_stride,
    numbers,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    N_GROUPS: tl.constexpr,
    N_TILES: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Find the largest logit of each tile and its first place; of rows that are truncated, the
    largest of each group too, both as `rising`. Grid [N_TILES, n]."""
    GROUP: tl.constexpr = 1 << GROUP_BITS
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    there = ids < V
    x = tl.load(logits + row * logits_stride + ids, mask=there, other=float("-inf"))
    images = tl.where(there, rising(x.to(tl.float32)), LEAST)
    highest = tl.max(images, 1)
    if (tl.load(numbers + row * WIDTH + MODE) & TRUNCATES) != 0:
        tl.store(groups + row * N_GROUPS + group, highest, mask=group < N_GROUPS)
    peak = tl.max(highest, 0)
    place = tl.min(tl.min(tl.where(images == peak, ids, V), 1), 0)
    tl.store(peaks + row * N_TILES + tile, peak)
    tl.store(places + row * N_TILES + tile, place)


@triton.jit
def totals(
    sums,
    bests,
    winners,
    peaks,
    logits,
    logits_stride,
    numbers,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    N_TILES: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sum exp(score) over each tile; of rows drawn from all tokens, find the token with the largest
    noisy score there, and that score. Grid [N_TILES, n]."""
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    numbers += row * WIDTH
    each = tl.arange(0, TILES)
    highest = tl.load(peaks + row * N_TILES + each, mask=each < N_TILES, other=LEAST)
    peak = risen(tl.max(highest, 0))
    ids = tile * TILE + tl.arange(0, TILE)
    score = scores(logits + row * logits_stride, ids, ids < V, peak, temperature_of(numbers))
    tl.store(sums + row * N_TILES + tile, tl.sum(tl.exp(score), 0))
    if tl.load(numbers + MODE) == DRAWS:
        values = add_gumbel_noise(score, ids, numbers)
        best = tl.max(values, 0)
        winner = tl.min(tl.where(values == best, ids, V), 0)
        tl.store(bests + row * N_TILES + tile, best)
        tl.store(winners + row * N_TILES + tile, winner)


@triton.jit
def choose(
    tokens_out,
    max_logits_out,
    logprobs_out,
    items,
    groups,
    peaks,
    places,
    sums,
    bests,
    winners,
    logits,
    logits_stride,
    numbers,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    N_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    N_TILES: tl.constexpr,
    TILES: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    ROOM: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Choose the token of each row; store it, its row's largest logit, and its log-probability.
    Grid [n]."""
    row = tl.program_id(0).to(tl.int64)
    numbers += row * WIDTH
    logits += row * logits_stride
    tile = row * N_TILES + tl.arange(0, TILES)
    there = tl.arange(0, TILES) < N_TILES
    images = tl.load(peaks + tile, mask=there, other=LEAST)
    image = tl.max(images, 0)
    peak = risen(image)
    place = tl.load(places + tile, mask=there, other=V)
    token = tl.min(tl.where(images == image, place, V), 0)
    total = tl.sum(tl.load(sums + tile, mask=there, other=0.0).to(tl.float64), 0)
    mode = tl.load(numbers + MODE)
    temperature = temperature_of(numbers)
    # Where logits are broken, any token will do.
    usable = tl.abs(peak) < float("inf")
    if usable & (mode == DRAWS):
        values = tl.load(bests + tile, mask=there, other=float("-inf"))
        winner = tl.load(winners + tile, mask=there, other=V)
        token = tl.min(tl.where(values == tl.max(values, 0), winner, V), 0)
    if usable & ((mode & TRUNCATES) != 0):
        token, total = cut(
            logits,
            items + row * (N_GROUPS + ROOM),
            groups + row * N_GROUPS,
            numbers,
            peak,
            temperature,
            total,
            V,
            N_GROUPS,
            GROUPS,
            GROUP_BITS,
            ROOM,
            AT_ONCE,
            PIVOTS,
        )
    x = tl.load(logits + token).to(tl.float32)
    logprob = tl.div_rn(x - peak, temperature).to(tl.float64) - tl.log(total)
    tl.store(tokens_out + row, token.to(tl.int64))
    tl.store(max_logits_out + row, peak)
    tl.store(logprobs_out + row, logprob.to(tl.float32))

"""The part of a tensor that a rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch


class Range(NamedTuple):
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


Slices = dict[int, list[Range]]
"""The ranges that are kept, by dimension, one after the other; other dimensions are whole."""


def cut(tensor: torch.Tensor, slices: Slices) -> torch.Tensor:
    """Return the part of a tensor: a view where each dimension has one range."""
    for dim, ranges in slices.items():
        parts = [tensor.narrow(dim, one.start, one.size) for one in ranges]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return tensor


def divide(n: int, parts: int, unit: int = 1) -> list[Range]:
    """Split 0 to n into so many ranges, as evenly as whole units allow. n is a multiple of the
    unit."""
    edges = [n // unit * at // parts * unit for at in range(parts + 1)]
    return [Range(*pair) for pair in pairwise(edges)]


def within(ranges: Sequence[Range], part: Range) -> list[Range]:
    """Return the intersection of the ranges with a part, counted from the part's beginning."""
    met = [Range(max(one.start, part.start), min(one.end, part.end)) for one in ranges]
    return [Range(a - part.start, b - part.start) for a, b in met if a < b]


def divide_heads(n_heads: int, n_kv_heads: int, rank: int, world_size: int) -> tuple[Range, Range]:
    """Return the query and the key-value heads of a rank, of no more ranks than query heads."""
    group = n_heads // n_kv_heads
    if world_size <= n_kv_heads:
        keys = divide(n_kv_heads, world_size)[rank]
        return Range(keys.start * group, keys.end * group), keys
    # Ranks to a key-value head, whose queries they share.
    shared = divide(world_size, n_kv_heads)
    key = next(at for at, one in enumerate(shared) if rank < one.end)
    own = divide(group, shared[key].size)[rank - shared[key].start]
    return Range(key * group + own.start, key * group + own.end), Range(key, key + 1)

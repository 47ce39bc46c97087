"""Sets of characters as expressions over UTF-8 bytes."""

from __future__ import annotations

import unicodedata
from functools import cache

from tgi_async.grammar.characters import LAST, Ranges, complement, union
from workers.constraints.expressions import Expressions
from workers.constraints.nodes import Expression, TooComplex

SURROGATES = (0xD800, 0xDFFF)
MAX_FOLDED = 5_000
"""Most characters of a set that is matched without regard to case."""

ANY = ((0, LAST),)
NO_LINE_BREAK = complement(((10, 10),))
DIGITS = ((48, 57),)
WORD = union([(48, 57), (65, 90), (95, 95), (97, 122)])
SPACES = union([(9, 13), (32, 32)])


@cache
def category(name: str) -> Ranges:
    """Return the characters of a general category, such as `L` or `Lu`. Raises TooComplex."""
    known = {"L", "M", "N", "P", "S", "Z", "C"}
    if not (name[:1] in known and len(name) <= 2 and name[1:].islower() == (len(name) == 2)):
        raise TooComplex
    return union([(i, i) for i in range(LAST + 1) if unicodedata.category(chr(i)).startswith(name)])


@cache
def unicode_spaces() -> Ranges:
    """Return Unicode's white space."""
    single = (0x20, 0x85, 0xA0, 0x1680, 0x202F, 0x205F, 0x3000)
    return union([(9, 13), (0x2000, 0x200A), (0x2028, 0x2029), *((one, one) for one in single)])


def folded(ranges: Ranges) -> Ranges:
    """Add the other case of each character. Raises TooComplex."""
    if sum(high - low + 1 for low, high in ranges) > MAX_FOLDED:
        raise TooComplex
    found = list(ranges)
    for low, high in ranges:
        for i in range(low, high + 1):
            for other in {chr(i).upper(), chr(i).lower()}:
                if len(other) == 1:
                    found.append((ord(other), ord(other)))
    if any(low <= ord(one) <= high for low, high in found for one in "ks"):
        found += [(0x212A, 0x212A), (0x17F, 0x17F)]
    return union(found)


LENGTHS = (
    (0, 0x7F, 0, 0),
    (0x80, 0x7FF, 1, 0xC0),
    (0x800, 0xFFFF, 2, 0xE0),
    (0x10000, LAST, 3, 0xF0),
)
"""First and last characters, number of bytes after the first one, and the upper bits of that."""


def characters(expressions: Expressions, ranges: Ranges) -> Expression:
    """Return the expression of one character of a set."""
    options = []
    ranges = tuple(
        (max(low, first), min(high, last))
        for low, high in ranges
        for first, last in ((0, SURROGATES[0] - 1), (SURROGATES[1] + 1, LAST))
        if max(low, first) <= min(high, last)
    )
    for first, last, n_more, lead in LENGTHS:
        inside = [
            (max(low, first), min(high, last))
            for low, high in ranges
            if low <= last and high >= first
        ]
        if inside:
            options.append(_bytes(expressions, inside, n_more, lead))
    return expressions.choice(options)


def _bytes(
    expressions: Expressions, ranges: list[tuple[int, int]], n_more: int, lead: int
) -> Expression:
    """Return characters whose first byte, but for its lower bits, is `lead`, with so many bytes
    after it."""
    if not n_more:
        mask = 0
        for low, high in ranges:
            mask |= (1 << (high + 1)) - (1 << low)
        return expressions.symbols(mask << lead)
    size = 64**n_more
    if lead == 0x80 and ranges == [(0, 64 * size - 1)]:
        some = expressions.symbols(((1 << 64) - 1) << 0x80)
        return expressions.repeated(some, n_more + 1, n_more + 1)
    blocks: dict[int, list[tuple[int, int]]] = {}
    for low, high in ranges:
        for block in range(low // size, high // size + 1):
            part = (max(low - block * size, 0), min(high - block * size, size - 1))
            blocks.setdefault(block, []).append(part)
    same: dict[Expression, int] = {}
    for block, inside in blocks.items():
        rest = _bytes(expressions, inside, n_more - 1, 0x80)
        same[rest] = same.get(rest, 0) | 1 << (lead + block)
    return expressions.choice(
        expressions.then(expressions.symbols(mask), rest) for rest, mask in same.items()
    )

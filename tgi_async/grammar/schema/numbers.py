"""Write constraints on numbers in keywords that the engine follows exactly.

The engine reads a bound as a double, compares integers of 64 bits, and writes the bound of a number
with as many digits as tell the double from others. So a bound beyond 2^53 is moved inwards: to the
next double that is an integer, or to 15 digits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from tgi_async.grammar.schema.clause import NumberClause
from tgi_async.grammar.schema.errors import Inexpressible

MAX_NUMBER = 2**53
"""Up to this every integer is a double."""
MOST_INTEGER = 2**63 - 1
LEAST_INTEGER = -(2**63) + 1024
MOST_DECIMAL = 9 * 10**18
"""Bound, on either side, of numbers that may have decimals."""
OPEN = 10**18
"""A bound from which on the engine needs the other one."""
DIGITS = 15
MOST_INTERVALS = 40
"""Most excluded multiples, and most multiples that are written one by one."""
MOST_STEP = 10**7
"""Most digits of a multiple, without its point: the engine counts remainders."""


def number_keywords(numbers: NumberClause) -> list[dict[str, Any]]:
    """Return alternatives, of which a number must satisfy one. Raises Inexpressible."""
    several = _between(numbers) if numbers.not_multiples else [numbers]
    if any(_digits(step) > MOST_STEP for step in numbers.multiples):
        several = [one for numbers in several for one in _single_multiples(numbers)]
    found = []
    for one in several:
        if keywords := _range_keywords(one):
            found.append(keywords)
        elif one.range == (None, None):
            return [{}]
    if not found:
        raise Inexpressible("a number beyond 2**53 must be a double within 64 bits")
    return found


def _range_keywords(numbers: NumberClause) -> dict[str, Any]:
    """Return the keywords of a range; empty if nothing is left, or if there is no constraint."""
    low, high = numbers.range
    least, most = LEAST_INTEGER, MOST_INTEGER
    if not numbers.integer:
        least, most = -MOST_DECIMAL, MOST_DECIMAL
    keywords: dict[str, Any] = {}
    inside_low = None if low is None else _inwards(low, numbers.integer, least, up=True)
    inside_high = None if high is None else _inwards(high, numbers.integer, most, up=False)
    if inside_high is None and inside_low is not None and inside_low >= OPEN:
        inside_high = most
    if inside_low is None and inside_high is not None and inside_high <= -OPEN:
        inside_low = least
    if (
        inside_low is not None
        and inside_high is not None
        and (inside_low > inside_high or inside_low > most or inside_high < least)
    ):
        return {}
    if inside_low is not None:
        inclusive = numbers.integer or inside_low != numbers.above
        keywords["minimum" if inclusive else "exclusiveMinimum"] = inside_low
    if inside_high is not None:
        inclusive = numbers.integer or inside_high != numbers.below
        keywords["maximum" if inclusive else "exclusiveMaximum"] = inside_high
    for index, multiple in enumerate(numbers.multiples):
        if index:
            keywords.setdefault("allOf", []).append({"multipleOf": multiple})
        else:
            keywords["multipleOf"] = multiple
    return keywords


def _inwards(bound: float, integer: bool, most: int, *, up: bool) -> float:
    """Return the bound, or the nearest one inside the range that the engine reads exactly.

    `most` is the outermost bound that it can read on this side.
    """
    if abs(bound) <= MAX_NUMBER:
        return bound
    whole: int = math.ceil(bound) if up else math.floor(bound)
    if (up and whole <= most) or (not up and whole >= most):
        return most
    size = len(str(abs(whole))) - DIGITS
    step: int = 1 << (abs(whole).bit_length() - 53) if integer else 10**size
    return -(-whole // step) * step if up else whole // step * step


def _digits(step: float) -> int:
    """Return the digits of a multiple without its point."""
    fraction = Fraction(str(step))
    decimals = 0
    while fraction.denominator != 1:
        fraction *= 10
        decimals += 1
    return fraction.numerator


def _single_multiples(numbers: NumberClause) -> list[NumberClause]:
    """Return some of the multiples, those next to a bound or to 0, one by one."""
    steps = [Fraction(str(step)) for step in numbers.multiples]
    step = steps[0]
    for other in steps[1:]:
        step = Fraction(
            math.lcm(step.numerator * other.denominator, other.numerator * step.denominator),
            step.denominator * other.denominator,
        )
    found = []
    for index in _around(numbers, step):
        value = _plain(index * step)
        exactly = NumberClause(value, value, integer=isinstance(value, int))
        one = replace(numbers, multiples=()).intersect(exactly)
        if not one.empty:
            found.append(one)
    return found


def _around(numbers: NumberClause, step: Fraction) -> range:
    low, high = numbers.range
    first = -MOST_INTERVALS // 2
    if low is not None:
        first = math.floor(Fraction(str(low)) / step)
    elif high is not None:
        first = math.ceil(Fraction(str(high)) / step) - MOST_INTERVALS
    return range(first, first + MOST_INTERVALS)


def _between(numbers: NumberClause) -> list[NumberClause]:
    """Return ranges between two excluded multiples, for those that are nearest to the bounds or to
    0.

    Raises Inexpressible.
    """
    steps = sorted(Fraction(str(step)) for step in numbers.not_multiples)
    if any(step % steps[0] for step in steps):
        raise Inexpressible("a number must be no multiple of several numbers")
    found: list[NumberClause] = []
    for index in _around(numbers, steps[0]):
        above, below = (_plain(at * steps[0]) for at in (index, index + 1))
        one = replace(numbers, not_multiples=()).intersect(NumberClause(above=above, below=below))
        if not one.empty:
            found.append(one)
    if not found:
        raise Inexpressible("no number between two multiples is found")
    return found


def _plain(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)

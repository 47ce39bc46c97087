"""Numbers within bounds, or multiples of one, as an automaton over their digits."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from workers.constraints.expressions import Expressions
from workers.constraints.nodes import Steps

MOST_DIGITS = 24
"""Most digits that are tried after a beginning."""
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_BEGUN = re.compile(r"(-?)(0|[1-9]\d*|)(\.\d*)?")


class Bounds(NamedTuple):
    """Bounds of a number. None is no bound."""

    integer: bool
    low: Fraction | None
    high: Fraction | None
    above: bool
    """Whether `low` itself is excluded."""
    below: bool
    step: Fraction | None
    """The number is a multiple of this."""


class NumberMachine:
    """An automaton whose state is the text so far."""

    def __init__(self, expressions: Expressions, bounds: Bounds) -> None:
        self._expressions = expressions
        self._bounds = bounds
        self._known: dict[str, bytes | None] = {}

    @property
    def most(self) -> int:
        """See `Machine`."""
        return MOST_DIGITS

    @property
    def inner(self) -> tuple[()]:
        """See `Machine`."""
        return ()

    def accepts(self, state: str) -> bool:
        """See `Machine`."""
        return self.least(state) == b""

    def steps(self, state: str) -> Steps:
        """See `Machine`."""
        found = []
        for letter in "-0123456789" if self._bounds.integer else "-0123456789.":
            if _BEGUN.fullmatch(state + letter) and not (state + letter).endswith("-."):
                node = self._expressions.machine(self, state + letter)
                found.append((1 << ord(letter), node))
        return found

    def least(self, state: str) -> bytes | None:
        """See `Machine`."""
        if state not in self._known:
            self._known[state] = self._least(state)
        return self._known[state]

    def _least(self, state: str) -> bytes | None:
        begun = _BEGUN.fullmatch(state)
        assert begun is not None
        sign, whole, fraction = begun.groups()
        signs = [sign] if state else ["", "-"]
        for n_more in range(MOST_DIGITS):
            for sign in signs:
                more = n_more - (len(sign) if not state else 0)
                for n_whole in range(more, -1, -1) if fraction is None else (0,):
                    rest = more - n_whole
                    n_fraction = rest if fraction is not None else rest - 1
                    if (rest and self._bounds.integer) or n_fraction < -1:
                        continue
                    found = self._with(sign, whole, fraction, n_whole, n_fraction if rest else None)
                    if found is not None:
                        return (sign + found)[len(state) :].encode()
        return None

    def _with(
        self, sign: str, whole: str, fraction: str | None, n_whole: int, n_fraction: int | None
    ) -> str | None:
        """Return the digits of a number with so many more of each; `n_fraction` None: without a
        `.`."""
        if n_whole and whole == "0":
            return None
        if not whole and not n_whole:
            return None
        n_known = len(fraction) - 1 if fraction else 0
        n_digits = n_known + (n_fraction or 0)
        if (fraction is not None or n_fraction is not None) and not n_digits:
            return None
        scale = 10**n_digits
        if whole:
            known = int(whole + (fraction or ".")[1:])
            low = known * 10 ** (n_whole + (n_fraction or 0))
            high = low + 10 ** (n_whole + (n_fraction or 0)) - 1
        else:
            low = 0 if n_whole == 1 else 10 ** (n_whole - 1) * scale
            high = 10**n_whole * scale - 1
        found = self._fitting(sign, low, high, scale)
        if found is None:
            return None
        digits = str(found).rjust(n_digits + 1, "0")
        if not n_digits:
            return digits
        return f"{digits[:-n_digits]}.{digits[-n_digits:]}"

    def _fitting(self, sign: str, low: int, high: int, scale: int) -> int | None:
        """Return the least number between these that fits, all of them with so many decimals."""
        bounds = self._bounds
        lower, upper, above, below = bounds.low, bounds.high, bounds.above, bounds.below
        if sign:
            lower, upper, above, below = (
                None if upper is None else -upper,
                None if lower is None else -lower,
                below,
                above,
            )
            low = max(low, 1)
        if lower is not None:
            least = lower * scale
            low = max(low, math.floor(least) + 1 if above else math.ceil(least))
        if upper is not None:
            most = upper * scale
            high = min(high, math.ceil(most) - 1 if below else math.floor(most))
        if bounds.step is not None:
            step = (bounds.step * scale).numerator
            low = -(-low // step) * step
        return low if low <= high else None

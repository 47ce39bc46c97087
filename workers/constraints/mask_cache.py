"""Masks cached by what they depend on: what may follow a text, within the bytes of one token.

In `[a-z ]{4000}` nearly every place has the same mask as the one before, in a JSON string too, and
the next row with the same grammar passes through the same places.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from workers.constraints.expressions import ENDLESS, Expressions
from workers.constraints.nodes import Expression

Mask = NDArray[np.int32]

MAX_BYTES = 4 << 20
"""Most bytes of all masks of one grammar."""
MAX_LOOKED_AT = 16
"""Most parts of a sequence in which repetitions are searched."""
DEPTH = 16
"""Most nested parts whose bytes are counted."""


class _Known:
    """A mask, and whether the engine gave it twice."""

    __slots__ = ("is_sure", "mask", "raw")

    def __init__(self, mask: Mask) -> None:
        self.raw = mask.tobytes()
        self.mask: Mask = np.frombuffer(self.raw, np.int32)
        self.is_sure = False


class MaskCache:
    """The latest masks of one grammar. Not thread-safe.

    A mask is reused once the engine gave it twice for equal expressions; where the two differ, the
    expressions are not the engine's, and nothing is cached any more.
    """

    def __init__(self, expressions: Expressions, longest: int) -> None:
        """Make an empty cache. `longest`: bytes of the longest token."""
        self._expressions = expressions
        self._longest = longest
        self._known: OrderedDict[Expression, _Known] = OrderedDict()
        self._nbytes = 0
        self._fits = True
        self._tails: dict[Expression, Expression] = {}
        self._least: dict[Expression, int] = {}
        self._most_visible: dict[Expression, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        return self._nbytes + 100 * (len(self._tails) + len(self._least))

    def get(self, node: Expression) -> Mask | None:
        """Return the mask of this expression, if it is known. It is read-only."""
        key = self.window(node)
        known = self._known.get(key)
        if known is None or not known.is_sure:
            return None
        self._known.move_to_end(key)
        return known.mask

    def put(self, node: Expression, mask: Mask) -> None:
        """Keep the engine's mask of this expression. Raises TooComplex."""
        if not self._fits:
            return
        key = self.window(node)
        known = self._known.get(key)
        if known is None:
            self._known[key] = _Known(mask)
            self._nbytes += mask.nbytes
            while self._nbytes > MAX_BYTES:
                _, dropped = self._known.popitem(last=False)
                self._nbytes -= dropped.mask.nbytes
            return
        self._known.move_to_end(key)
        known.is_sure = known.raw == mask.tobytes()
        if not known.is_sure:
            self._fits = False
            self._known.clear()
            self._nbytes = 0

    def window(self, node: Expression) -> Expression:
        """Return one expression for all that are equal within the length of a token."""
        if node.window is None:
            node.window = self._window(node)
        return node.window

    def _window(self, node: Expression) -> Expression:
        x = self._expressions
        match node.kind:
            case "repeated":
                return self._fewer(node)
            case "choice":
                parts = [self.window(one) for one in node.parts]
                return node if parts == list(node.parts) else x.choice(parts)
            case "then":
                return self._sequence(node)
        return node

    def _fewer(self, node: Expression) -> Expression:
        """Return a repetition with counts that are no higher than a token can distinguish."""
        inner, least, most = node.parts
        n = self._visible(inner)
        if least > n:
            return self._expressions.repeated(inner, n + 1)
        return node if most is None or most <= n else self._expressions.repeated(inner, least)

    def _visible(self, inner: Expression) -> int:
        """Return how often something can occur within a token, at most."""
        found = self._most_visible.get(inner)
        if found is None:
            found = self._most_visible[inner] = self._longest // max(1, self._least_bytes(inner))
        return found

    def _sequence(self, node: Expression) -> Expression:
        first, rest = node.parts
        return self._joined(
            node, self.window(first), None if self._hides(node) else self._tail(rest)
        )

    def _tail(self, node: Expression) -> Expression:
        """Return what comes after other parts, with only the counts of its repetitions reduced.

        From the end on, which many sequences have in common.
        """
        begun: list[Expression] = []
        while node.kind == "then" and node not in self._tails:
            begun.append(node)
            node = node.parts[1]
        found = self._tails.get(node) or (self._fewer(node) if node.kind == "repeated" else node)
        for one in reversed(begun):
            first = one.parts[0]
            head = self._fewer(first) if first.kind == "repeated" else first
            found = self._joined(one, head, None if self._hides(one) else found)
            self._tails[one] = found
        return found

    def _joined(self, node: Expression, head: Expression, tail: Expression | None) -> Expression:
        """Return the sequence with these in the places of its parts; `tail` None: no token gets
        there."""
        if tail is None:
            return head
        first, rest = node.parts
        return node if head is first and tail is rest else self._expressions.then(head, tail)

    def _hides(self, node: Expression) -> bool:
        """Return whether no token gets past the first part of a sequence, and something can."""
        first, rest = node.parts
        return (
            first.kind == "repeated"
            and first.parts[1] > self._visible(first.parts[0])
            and self._expressions.cost(rest) < ENDLESS
        )

    def _least_bytes(self, node: Expression, depth: int = 0) -> int:
        """Return a lower bound of the texts' bytes."""
        if node.nullable:
            return 0
        found = self._least.get(node)
        if found is None:
            found = self._least[node] = 1 if depth > DEPTH else self._sum(node, depth + 1)
        return found

    def _sum(self, node: Expression, depth: int) -> int:
        match node.kind:
            case "then":
                found = 0
                for _ in range(MAX_LOOKED_AT):
                    if node.kind == "then":
                        first, node = node.parts
                        found += self._least_bytes(first, depth)
                return found + self._least_bytes(node, depth) if node.kind != "then" else found
            case "choice":
                return min(self._least_bytes(one, depth) for one in node.parts)
            case "repeated":
                return int(node.parts[1]) * self._least_bytes(node.parts[0], depth)
        return 1

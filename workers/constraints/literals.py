"""One of many given texts, as an automaton over their sorted list."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from workers.constraints.expressions import Expressions
from workers.constraints.nodes import Expression, Steps

State = tuple[int, int, int]
"""A range of the sorted texts, whose first so many bytes are equal."""


class LiteralMachine:
    """A `Machine` for a choice of texts, which are different and not empty."""

    inner: tuple[Expression, ...] = ()

    def __init__(self, expressions: Expressions, texts: Iterable[bytes]) -> None:
        self._expressions = expressions
        self._texts = sorted(set(texts))
        self.most = max(map(len, self._texts))

    @property
    def start(self) -> Expression:
        """Return the start state."""
        return self._expressions.machine(self, (0, len(self._texts), 0))

    def accepts(self, state: State) -> bool:
        """See `Machine`."""
        first, _, depth = state
        return len(self._texts[first]) == depth

    def least(self, state: State) -> bytes:
        """See `Machine`."""
        first, end, depth = state
        return min(self._texts[first:end], key=lambda text: (len(text), text))[depth:]

    def steps(self, state: State) -> Steps:
        """See `Machine`."""
        first, end, depth = state
        found = []
        if self.accepts(state):
            first += 1
        while first < end:
            beginning = self._texts[first][: depth + 1]
            byte = beginning[-1]
            after = end
            if byte < 255:
                after = bisect_left(self._texts, beginning[:-1] + bytes((byte + 1,)), first, end)
            node = self._expressions.machine(self, (first, after, depth + 1))
            found.append((1 << byte, node))
            first = after
        return found

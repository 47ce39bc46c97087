"""Upper bounds of the tokens that the rest of a text needs, by the structure of its expression.

Of a text that must only become long enough, the rest is runs of one byte; of all else, each byte
counts as a token. So these are bounds that cost next to nothing: where they are too high to tell,
the tokens of a completion are counted.
"""

from __future__ import annotations

from workers.constraints.expressions import ENDLESS, Expressions
from workers.constraints.nodes import Expression, Machine
from workers.constraints.tokens import TokenTable


class TokenCounts:
    """The token counts of one grammar. Not thread-safe."""

    def __init__(self, expressions: Expressions, tokens: TokenTable) -> None:
        self._expressions = expressions
        self._tokens = tokens
        self._enough: dict[Expression, int] = {}
        self._most: dict[Expression, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        return 100 * (len(self._enough) + len(self._most))

    def enough(self, node: Expression) -> int:
        """Return a number of tokens that is enough to complete a text; `ENDLESS` and more if none
        is known."""
        found = self._enough.get(node)
        if found is None:
            for one in _with_rests(node, self._enough):
                found = self._enough[one] = min(ENDLESS, self._enough_of(one))
            assert found is not None
        return found

    def _enough_of(self, node: Expression) -> int:
        if node.nullable:
            return 0
        parts = node.parts
        match node.kind:
            case "then":
                return self.enough(parts[0]) + self.enough(parts[1])
            case "choice":
                return min(self.enough(one) for one in parts)
            case "repeated":
                return self._repeated(parts[0], parts[1])
        return self._expressions.cost(node)

    def _repeated(self, node: Expression, n: int) -> int:
        count = self._tokens.runs.count(single(node), n)
        return n * self.enough(node) if count is None else count

    def most(self, node: Expression) -> int:
        """Return `enough` for whatever may follow any beginning of a text, if it is not more than
        this.

        `ENDLESS` where that is not known.
        """
        return max(self.enough(node), self._most_of(node))

    def _most_of(self, node: Expression) -> int:
        found = self._most.get(node)
        if found is None:
            for one in _with_rests(node, self._most):
                found = self._most[one] = min(ENDLESS, self._found(one))
            assert found is not None
        return found

    def _found(self, node: Expression) -> int:
        parts = node.parts
        match node.kind:
            case "symbols" | "empty":
                return 0
            case "then":
                first, rest = parts
                inside = self._most_of(first) + self.enough(rest)
                return max(inside, self._most_of(rest), self.enough(rest))
            case "choice":
                return max(self._most_of(one) for one in parts)
            case "repeated":
                inner, again = parts[0], max(0, int(parts[1]) - 1)
                count = self._tokens.runs.most(single(inner), again)
                more = again * self.enough(inner) if count is None else count
                return self._most_of(inner) + more
            case "machine":
                machine: Machine = parts[0]
                return max(int(machine.most), *(self._most_of(one) for one in machine.inner), 0)
        return ENDLESS

    def way(self, node: Expression) -> list[int] | None:
        """Return tokens that complete a text, no more than `enough`; None where they are not
        known."""
        found: list[int] = []
        while not node.nullable:
            first, node = node.parts if node.kind == "then" else (node, self._expressions.empty)
            tokens = self._part(first)
            if tokens is None:
                return None
            found += tokens
        return found

    def _part(self, node: Expression) -> list[int] | None:
        if node.nullable:
            return []
        parts = node.parts
        match node.kind:
            case "then":
                return self.way(node)
            case "choice":
                return self.way(min(parts, key=self.enough))
            case "repeated":
                inner, n = parts[0], parts[1]
                run = self._tokens.runs.tokens(single(inner), n)
                if run is not None:
                    return run
                once = self.way(inner)
                return None if once is None else once * n
        if self._expressions.cost(node) >= ENDLESS:
            return None
        return self._tokens.spelled(self._expressions.least(node))


def single(node: Expression) -> int:
    """Return symbols (a bit mask) each of which alone is a whole text, where that is easily
    seen."""
    if node.kind == "symbols":
        return int(node.parts[0])
    found = 0
    for one in node.parts if node.kind == "choice" else ():
        if one.kind == "symbols":
            found |= one.parts[0]
    return found


def _with_rests(node: Expression, known: dict[Expression, int]) -> list[Expression]:
    """Yield a sequence and its ends that are not known, the shortest first, as a recursion could be
    too deep."""
    found = [node]
    while node.kind == "then" and node.parts[1] not in known:
        node = node.parts[1]
        found.append(node)
    return found[::-1]

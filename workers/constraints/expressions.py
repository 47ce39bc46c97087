"""Sets of texts as expressions over bytes: derivatives, and shortest completions.

References make the languages of nested values out of them. What is asked of an expression follows
from its parts, but for an intersection, where the shortest text is searched.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from workers.constraints.derivatives import Derivatives
from workers.constraints.nodes import Expression

ENDLESS = 1 << 40
"""The cost of an expression without a finite text."""
MAX_SEARCHED = 2_000
"""Most expressions visited to find the shortest text of an intersection."""
FILLERS = (b"", b"a", b" a")
"""Where bytes can be chosen, the first allowed one of one of these is taken; where they can be
chosen again and again, in their order."""


class Expressions(Derivatives):
    """The expressions of one grammar. Every method that makes one raises TooComplex. Not
    thread-safe."""

    def __init__(self, fillers: Sequence[bytes] = FILLERS) -> None:
        super().__init__()
        self.fillers = fillers
        self._texts: dict[tuple[Expression, int], tuple[int, ...]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        return super().nbytes + 8 * sum(map(len, list(self._texts.values())))

    def settle(self) -> None:
        """Compute the costs of all expressions; where references lead in circles, of all at
        once."""
        nodes = list(self._nodes.values())
        costs = dict.fromkeys(self._definitions, ENDLESS)
        while True:
            for node in nodes:  # parts come before what is made of them
                node.cost = None
                if node.kind == "reference":
                    node.cost = costs.get(node.parts[0], ENDLESS)
                elif node.kind not in ("both", "other"):
                    self.cost(node)
            found = {name: self.cost(node) for name, node in self._definitions.items()}
            if found == costs:
                break
            costs = found

    def cost(self, node: Expression) -> int:
        """Return the length of the shortest text in symbols; `ENDLESS` and more if none is
        known."""
        if node.cost is None:
            node.cost = self._cost(node)
        return node.cost

    def _cost(self, node: Expression) -> int:
        if node.nullable:
            return 0
        parts = node.parts
        match node.kind:
            case "symbols":
                return 1 if parts[0] else ENDLESS
            case "then":
                cost = 0
                while node.kind == "then" and node.cost is None:
                    cost += self.cost(node.parts[0])
                    node = node.parts[1]
                return min(ENDLESS, cost + self.cost(node))
            case "choice":
                return min(self.cost(one) for one in parts)
            case "repeated":
                return min(ENDLESS, int(parts[1]) * self.cost(parts[0]))
            case "machine":
                least: bytes | None = parts[0].least(parts[1])
                return ENDLESS if least is None else len(least)
            case "both" | "other":
                return self._searched(node)
        return ENDLESS

    def _bound(self, node: Expression) -> int:
        """Return a lower bound of the shortest text's length."""
        if node.cost is not None or node.kind not in ("both", "other", "then"):
            return self.cost(node)
        if node.nullable:
            return 0
        if node.kind == "other":
            return 1
        return max(self._bound(one) for one in node.parts)

    def _searched(self, start: Expression) -> int:
        """Return the cost, found by A*, and keep it for all expressions on the way."""
        waiting: list[tuple[int, int, int, Expression]] = [(self._bound(start), 0, 0, start)]
        came: dict[Expression, Expression] = {}
        best = {start: 0}
        serial = 0
        for _ in range(MAX_SEARCHED):
            if not waiting:
                break
            bound, _, _, node = heapq.heappop(waiting)
            if bound >= ENDLESS:
                break
            walked = best[node]
            if node.nullable or node.cost is not None:
                total = walked + self.cost(node)
                if total > bound and waiting and waiting[0][0] < total:
                    serial += 1
                    heapq.heappush(waiting, (total, -walked, serial, node))
                    continue
                while node is not start:
                    node = came[node]
                    node.cost = total - best[node]
                return total
            for _, following in self.steps(node):
                if following is self.nothing or walked + 1 >= best.get(following, ENDLESS):
                    continue
                best[following] = walked + 1
                came[following] = node
                serial += 1
                ahead = walked + 1 + self._bound(following)
                heapq.heappush(waiting, (ahead, -walked, serial, following))
        return ENDLESS

    def least(self, node: Expression, filler: int = 0) -> tuple[int, ...]:
        """Return the symbols of the shortest text, with the filler of this number where there is a
        choice. `cost` must be less than `ENDLESS`."""
        found: list[int] = []
        while not node.nullable:
            if node.kind == "then":
                found += self._least(node.parts[0], filler)
                node = node.parts[1]
            else:
                found += self._least(node, filler)
                break
        return tuple(found)

    def _least(self, node: Expression, filler: int) -> tuple[int, ...]:
        known = self._texts.get((node, filler))
        if known is None:
            known = self._texts[node, filler] = self._written(node, filler)
        return known

    def _written(self, node: Expression, filler: int) -> tuple[int, ...]:
        if node.nullable:
            return ()
        parts = node.parts
        match node.kind:
            case "symbols":
                return (_first(parts[0], self.fillers[filler]),)
            case "then":
                return self.least(node, filler)
            case "choice":
                cost = self.cost(node)
                return min(self.least(one, filler) for one in parts if self.cost(one) == cost)
            case "repeated":
                return self._filled(parts[0], parts[1], filler)
            case "reference":
                return self.least(self._definitions[parts[0]], filler)
            case "machine":
                return tuple(parts[0].least(parts[1]))
        found: list[int] = []
        while node.kind in ("both", "other") and not node.nullable:
            ahead = self.cost(node) - 1
            symbol, node = min(
                (
                    (_first(mask, self.fillers[filler]), one)
                    for mask, one in self.steps(node)
                    if self._bound(one) <= ahead and self.cost(one) == ahead
                ),
                key=_symbol,
            )
            found.append(symbol)
        return (*found, *self.least(node, filler))

    def _filled(self, node: Expression, times: int, filler: int) -> tuple[int, ...]:
        text = self.fillers[filler]
        if len(text) > 1 and all(self.after(node, one).nullable for one in text):
            return tuple((text * -(-times // len(text)))[:times])
        return self.least(node, filler) * times


def _symbol(step: tuple[int, Expression]) -> int:
    return step[0]


def _first(mask: int, wanted: bytes) -> int:
    for byte in wanted:
        if mask >> byte & 1:
            return byte
    return (mask & -mask).bit_length() - 1

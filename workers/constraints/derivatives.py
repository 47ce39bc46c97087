"""Derivatives of expressions: what may follow a text (Brzozowski, 1964)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workers.constraints.nodes import ALL_BYTES, Expression, Machine, Nodes, Steps


class Derivatives(Nodes):
    """Expressions, and their derivatives."""

    def after(self, node: Expression, symbol: int) -> Expression:
        """Return what may follow a symbol."""
        steps = node.steps
        if steps is None:
            # What follows other symbols is not computed, unless it is known already.
            if node.kind == "then" and not node.parts[0].nullable:
                first, rest = node.parts
                return self.then(self.after(first, symbol), rest)
            if node.kind == "repeated":
                return self.then(self.after(node.parts[0], symbol), self._fewer(node, 1))
            steps = self.steps(node)
        for mask, following in steps:
            if mask >> symbol & 1:
                return following
        return self.nothing

    def after_text(self, node: Expression, symbols: Sequence[int]) -> Expression:
        """Return what may follow these symbols."""
        at = 0
        while at < len(symbols):
            n = self._run(node, symbols, at)
            if n:
                first, rest = node.parts if node.kind == "then" else (node, self.empty)
                node = self.then(self._fewer(first, n), rest)
                at += n
            else:
                node = self.after(node, symbols[at])
                at += 1
        return node

    def _run(self, node: Expression, symbols: Sequence[int], at: int) -> int:
        """Return how many of the next symbols are each a whole repetition here."""
        first = node.parts[0] if node.kind == "then" else node
        if first.kind != "repeated" or first.nullable:
            return 0
        inner, least, _ = first.parts
        whole = 0
        for mask, following in self.steps(inner):
            if following is self.empty:
                whole |= mask
        end = min(len(symbols), at + least)
        found = at
        while found < end and whole >> symbols[found] & 1:
            found += 1
        return found - at

    def _fewer(self, node: Expression, n: int) -> Expression:
        """Return what is left of a repetition after so many times."""
        inner, least, most = node.parts
        return self.repeated(inner, max(0, least - n), None if most is None else most - n)

    def steps(self, node: Expression) -> Steps:
        """Return what may follow each symbol."""
        if node.steps is None:
            node.steps = self._steps(node)
        return node.steps

    def _steps(self, node: Expression) -> Steps:
        parts = node.parts
        match node.kind:
            case "symbols":
                return [(parts[0], self.empty)] if parts[0] else []
            case "then":
                first, rest = parts
                steps = [(mask, self.then(one, rest)) for mask, one in self.steps(first)]
                return self._union([steps, self.steps(rest)]) if first.nullable else steps
            case "choice":
                return self._union([self.steps(one) for one in parts])
            case "repeated":
                again = self._fewer(node, 1)
                return [(mask, self.then(one, again)) for mask, one in self.steps(parts[0])]
            case "both":
                found = self.steps(parts[0])
                for part in parts[1:]:
                    found = [
                        (shared, one)
                        for mask, left in found
                        for other, right in self.steps(part)
                        if (shared := mask & other)
                        and (one := self.both([left, right])) is not self.nothing
                    ]
                return found
            case "other":
                steps = [(mask, self.other(one)) for mask, one in self.steps(parts[0])]
                left = ALL_BYTES
                for mask, _ in steps:
                    left &= ~mask
                return [*steps, (left, self.any_bytes)] if left else steps
            case "reference":
                return self.steps(self._definitions.get(parts[0], self.nothing))
            case "machine":
                machine: Machine = parts[0]
                return machine.steps(parts[1])
        return []

    def _union(self, lists: Iterable[Steps]) -> Steps:
        """Return what follows in any of these."""
        by_mask: dict[int, list[Expression]] = {}
        for steps in lists:
            for mask, node in steps:
                by_mask.setdefault(mask, []).append(node)
        found: list[tuple[int, list[Expression]]] = []
        for mask, more in by_mask.items():
            parted: list[tuple[int, list[Expression]]] = []
            for other, nodes in found:
                shared = mask & other
                if not shared:
                    parted.append((other, nodes))
                    continue
                parted.append((shared, [*nodes, *more]))
                if other != shared:
                    parted.append((other & ~shared, nodes))
                mask &= ~shared
            if mask:
                parted.append((mask, more))
            found = parted
        same: dict[Expression, int] = {}
        for mask, nodes in found:
            node = self.choice(nodes)
            same[node] = same.get(node, 0) | mask
        return [(mask, node) for node, mask in same.items()]

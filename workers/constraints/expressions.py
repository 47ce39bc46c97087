"""Sets of texts as expressions over bytes: what may follow a text, and the shortest way to its end.

The expression of what may follow a byte is its derivative (Brzozowski, 1964). References make the
languages of nested values out of it. What is asked of an expression follows from its parts, but for
an intersection, where the shortest text is searched.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

ENDLESS = 1 << 40
"""The cost of what has no end."""
SPECIAL = 256
"""A special token is the symbol of its id and this; smaller symbols are bytes."""
ALL_BYTES = (1 << SPECIAL) - 1
MAX_NODES = 60_000
"""Of one grammar."""
NODE_BYTES = 700
"""Of one node, with what follows it, roughly."""
MAX_SEARCHED = 2_000
"""Expressions looked at on the way to the shortest text of one intersection."""
MAX_PARTS = 20_000
"""Of a choice."""
MAX_MADE = 10_000
"""Nodes that may be made for one question: some 100 ms."""
FILLERS = (b"", b"a", b" a")
"""Where bytes can be chosen, they are the first, of those that may be, in one of these; and where
they can be chosen again and again, in their order."""

Steps = list[tuple[int, "Node"]]
"""Disjoint sets of symbols (bit masks), each with what follows a symbol in it."""


class TooComplex(Exception):
    """An expression is beyond the limits."""


class Machine(Protocol):
    """An automaton of a kind of its own: a node is one in a state."""

    def steps(self, state: Any) -> Steps:
        """From a state."""
        ...

    def least(self, state: Any) -> bytes | None:
        """The shortest text from a state; None if there is none."""
        ...

    def accepts(self, state: Any) -> bool:
        """Whether the text may end in a state."""
        ...

    @property
    def most(self) -> int:
        """Symbols of the longest `least`, from any state that has one."""
        ...

    @property
    def inner(self) -> Sequence[Node]:
        """What may follow it, other than itself."""
        ...


class Node:
    """An expression. Equal ones of one `Expressions` are the same object."""

    __slots__ = ("cost", "kind", "nullable", "parts", "serial", "steps", "window")

    def __init__(self, kind: str, parts: tuple[Any, ...], nullable: bool, serial: int) -> None:
        self.serial = serial
        self.kind = kind
        self.parts = parts
        self.nullable = nullable
        self.cost: int | None = None
        self.steps: Steps | None = None
        self.window: Node | None = None
        """See `MaskCache`."""


class Expressions:
    """Those of one grammar. Every method that makes one raises TooComplex. Not thread-safe."""

    def __init__(self, fillers: Sequence[bytes] = FILLERS) -> None:
        self.fillers = fillers
        self._nodes: dict[tuple[Any, ...], Node] = {}
        self._texts: dict[tuple[Node, int], tuple[int, ...]] = {}
        self._definitions: dict[str, Node] = {}
        self._left_to_make = MAX_NODES
        self.nothing = self._made("symbols", (0,), False)
        self.empty = self._made("empty", (), True)
        self.any_bytes = self.repeated(self.symbols(ALL_BYTES))

    def __len__(self) -> int:
        return len(self._nodes)

    def begin(self) -> None:
        """A question: from now on, so many nodes may be made."""
        self._left_to_make = MAX_MADE

    @property
    def nbytes(self) -> int:
        """Bytes of memory, roughly."""
        return NODE_BYTES * len(self._nodes) + 8 * sum(map(len, list(self._texts.values())))

    def _made(self, kind: str, parts: tuple[Any, ...], nullable: bool) -> Node:
        key = (kind, *parts)
        found = self._nodes.get(key)
        if found is None:
            self._left_to_make -= 1
            if len(self._nodes) >= MAX_NODES or self._left_to_make < 0:
                raise TooComplex
            found = self._nodes[key] = Node(kind, parts, nullable, len(self._nodes))
        return found

    # What there is

    def symbols(self, mask: int) -> Node:
        """One symbol of a set."""
        return self._made("symbols", (mask,), False)

    def text(self, text: bytes) -> Node:
        """Exactly these bytes."""
        return self.sequence([self.symbols(1 << byte) for byte in text])

    def sequence(self, parts: Sequence[Node]) -> Node:
        """One after the other."""
        node = self.empty
        for part in reversed(parts):
            node = self.then(part, node)
        return node

    def then(self, first: Node, rest: Node) -> Node:
        """`first`, and then `rest`."""
        if first is self.nothing or rest is self.nothing:
            return self.nothing
        if first is self.empty:
            return rest
        if rest is self.empty:
            return first
        if first.kind == "then":
            heads = []
            while first.kind == "then":
                head, first = first.parts
                heads.append(head)
            node = self.then(first, rest)
            for head in reversed(heads):
                node = self.then(head, node)
            return node
        return self._made("then", (first, rest), first.nullable and rest.nullable)

    def choice(self, options: Iterable[Node]) -> Node:
        """One of these."""
        found: dict[Node, None] = {}
        for option in options:
            for one in option.parts if option.kind == "choice" else (option,):
                found[one] = None
        found.pop(self.nothing, None)
        if not found:
            return self.nothing
        if len(found) == 1:
            return next(iter(found))
        if len(found) > MAX_PARTS:
            raise TooComplex
        nodes = tuple(sorted(found, key=_serial))
        return self._made("choice", nodes, any(one.nullable for one in nodes))

    def optional(self, node: Node) -> Node:
        """This or nothing."""
        return self.choice([node, self.empty])

    def repeated(self, node: Node, least: int = 0, most: int | None = None) -> Node:
        """So many times; `most` None: any number."""
        if most == 0 or node is self.empty:
            return self.empty
        if node is self.nothing:
            return self.nothing if least else self.empty
        if (least, most) == (1, 1):
            return node
        if node.nullable:
            least = 0
        return self._made("repeated", (node, least, most), least == 0)

    def both(self, nodes: Iterable[Node]) -> Node:
        """What all of these have."""
        found: dict[Node, None] = {}
        for node in nodes:
            for one in node.parts if node.kind == "both" else (node,):
                found[one] = None
        found.pop(self.any_bytes, None)
        if self.nothing in found:
            return self.nothing
        if len(found) <= 1:
            return next(iter(found), self.any_bytes)
        if self.empty in found:
            return self.empty if all(one.nullable for one in found) else self.nothing
        parts = tuple(sorted(found, key=_serial))
        return self._made("both", parts, all(one.nullable for one in parts))

    def other(self, node: Node) -> Node:
        """Any bytes but these."""
        if node is self.nothing:
            return self.any_bytes
        if node.kind == "other":
            return node.parts[0]  # type: ignore[no-any-return]
        return self._made("other", (node,), not node.nullable)

    def reference(self, name: str) -> Node:
        """What will be defined by this name, and begins with a symbol."""
        return self._made("reference", (name,), False)

    def define(self, name: str, node: Node) -> None:
        """All names are defined before anything is asked of a reference."""
        self._definitions[name] = node

    def machine(self, machine: Machine, state: Any) -> Node:
        """A machine in a state."""
        return self._made("machine", (machine, state), machine.accepts(state))

    def settle(self) -> None:
        """Work out the costs of all there is: where references lead in circles, of all at once."""
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

    # What follows

    def after(self, node: Node, symbol: int) -> Node:
        """What may follow a symbol."""
        steps = node.steps
        if steps is None:
            # What follows other symbols is not worked out, where that is not known already.
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

    def after_text(self, node: Node, symbols: Sequence[int]) -> Node:
        """What may follow these symbols."""
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

    def _run(self, node: Node, symbols: Sequence[int], at: int) -> int:
        """How many of the next symbols are each a whole part of what is repeated here."""
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

    def _fewer(self, node: Node, n: int) -> Node:
        """What is left of a repetition after so many times."""
        inner, least, most = node.parts
        return self.repeated(inner, max(0, least - n), None if most is None else most - n)

    def steps(self, node: Node) -> Steps:
        """What may follow any symbol."""
        if node.steps is None:
            node.steps = self._steps(node)
        return node.steps

    def _steps(self, node: Node) -> Steps:
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
        """What follows in any of these."""
        by_mask: dict[int, list[Node]] = {}
        for steps in lists:
            for mask, node in steps:
                by_mask.setdefault(mask, []).append(node)
        found: list[tuple[int, list[Node]]] = []
        for mask, more in by_mask.items():
            parted: list[tuple[int, list[Node]]] = []
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
        same: dict[Node, int] = {}
        for mask, nodes in found:
            node = self.choice(nodes)
            same[node] = same.get(node, 0) | mask
        return [(mask, node) for node, mask in same.items()]

    # The shortest text

    def cost(self, node: Node) -> int:
        """How many symbols the shortest text has; `ENDLESS` and more if none is known."""
        if node.cost is None:
            node.cost = self._cost(node)
        return node.cost

    def _cost(self, node: Node) -> int:
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

    def _bound(self, node: Node) -> int:
        """The shortest text has no fewer symbols."""
        if node.cost is not None or node.kind not in ("both", "other", "then"):
            return self.cost(node)
        if node.nullable:
            return 0
        if node.kind == "other":
            return 1
        return max(self._bound(one) for one in node.parts)

    def _searched(self, start: Node) -> int:
        """The cost, found by A*; it is kept for all on the way."""
        waiting: list[tuple[int, int, int, Node]] = [(self._bound(start), 0, 0, start)]
        came: dict[Node, Node] = {}
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

    def least(self, node: Node, filler: int = 0) -> tuple[int, ...]:
        """The symbols of the shortest text, in the filler of this number where there is a
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

    def _least(self, node: Node, filler: int) -> tuple[int, ...]:
        known = self._texts.get((node, filler))
        if known is None:
            known = self._texts[node, filler] = self._written(node, filler)
        return known

    def _written(self, node: Node, filler: int) -> tuple[int, ...]:
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

    def _filled(self, node: Node, times: int, filler: int) -> tuple[int, ...]:
        text = self.fillers[filler]
        if len(text) > 1 and all(self.after(node, one).nullable for one in text):
            return tuple((text * -(-times // len(text)))[:times])
        return self.least(node, filler) * times


def _serial(node: Node) -> int:
    return node.serial


def _symbol(step: tuple[int, Node]) -> int:
    return step[0]


def _first(mask: int, wanted: bytes) -> int:
    for byte in wanted:
        if mask >> byte & 1:
            return byte
    return (mask & -mask).bit_length() - 1

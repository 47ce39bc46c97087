"""Expressions over bytes: their nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

SPECIAL = 256
"""A special token is the symbol of its id and this; smaller symbols are bytes."""
ALL_BYTES = (1 << SPECIAL) - 1
MAX_NODES = 60_000
"""Most nodes of one grammar."""
NODE_BYTES = 700
"""Bytes of one node, with what follows it, estimated."""
MAX_PARTS = 20_000
"""Most options of a choice."""
MAX_MADE = 10_000
"""Most nodes that one operation may make: some 100 ms."""

Steps = list[tuple[int, "Expression"]]
"""Disjoint sets of symbols (bit masks), each with what follows a symbol in it."""


class TooComplex(Exception):
    """An expression exceeds the limits."""


class Machine(Protocol):
    """An automaton of its own kind: a node is one in a state."""

    def steps(self, state: Any) -> Steps:
        """Return the steps from a state."""
        ...

    def least(self, state: Any) -> bytes | None:
        """Return the shortest text from a state; None if there is none."""
        ...

    def accepts(self, state: Any) -> bool:
        """Return whether the text may end in a state."""
        ...

    @property
    def most(self) -> int:
        """Symbols of the longest `least`, from any state that has one."""
        ...

    @property
    def inner(self) -> Sequence[Expression]:
        """Nodes that may follow it, other than its own."""
        ...


class Expression:
    """An expression. Equal ones of one `Expressions` are the same object."""

    __slots__ = ("cost", "kind", "nullable", "parts", "serial", "steps", "window")

    def __init__(self, kind: str, parts: tuple[Any, ...], nullable: bool, serial: int) -> None:
        self.serial = serial
        self.kind = kind
        self.parts = parts
        self.nullable = nullable
        self.cost: int | None = None
        self.steps: Steps | None = None
        self.window: Expression | None = None
        """See `MaskCache`."""


class Nodes:
    """The nodes of one grammar. Every method that makes one raises TooComplex."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[Any, ...], Expression] = {}
        self._definitions: dict[str, Expression] = {}
        self._left_to_make = MAX_NODES
        self.nothing = self._made("symbols", (0,), False)
        self.empty = self._made("empty", (), True)
        self.any_bytes = self.repeated(self.symbols(ALL_BYTES))

    def __len__(self) -> int:
        return len(self._nodes)

    def begin(self) -> None:
        """Begin an operation: from now on, so many nodes may be made."""
        self._left_to_make = MAX_MADE

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        return NODE_BYTES * len(self._nodes)

    def _made(self, kind: str, parts: tuple[Any, ...], nullable: bool) -> Expression:
        key = (kind, *parts)
        found = self._nodes.get(key)
        if found is None:
            self._left_to_make -= 1
            if len(self._nodes) >= MAX_NODES or self._left_to_make < 0:
                raise TooComplex
            found = self._nodes[key] = Expression(kind, parts, nullable, len(self._nodes))
        return found

    def symbols(self, mask: int) -> Expression:
        """Return one symbol of a set."""
        return self._made("symbols", (mask,), False)

    def text(self, text: bytes) -> Expression:
        """Return exactly these bytes."""
        return self.sequence([self.symbols(1 << byte) for byte in text])

    def sequence(self, parts: Sequence[Expression]) -> Expression:
        """Return one after the other."""
        node = self.empty
        for part in reversed(parts):
            node = self.then(part, node)
        return node

    def then(self, first: Expression, rest: Expression) -> Expression:
        """Return `first`, and then `rest`."""
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

    def choice(self, options: Iterable[Expression]) -> Expression:
        """Return a choice of these."""
        found: dict[Expression, None] = {}
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

    def optional(self, node: Expression) -> Expression:
        """Return this or nothing."""
        return self.choice([node, self.empty])

    def repeated(self, node: Expression, least: int = 0, most: int | None = None) -> Expression:
        """Return it repeated so many times; `most` None: any number."""
        if most == 0 or node is self.empty:
            return self.empty
        if node is self.nothing:
            return self.nothing if least else self.empty
        if (least, most) == (1, 1):
            return node
        if node.nullable:
            least = 0
        return self._made("repeated", (node, least, most), least == 0)

    def both(self, nodes: Iterable[Expression]) -> Expression:
        """Return the intersection."""
        found: dict[Expression, None] = {}
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

    def other(self, node: Expression) -> Expression:
        """Return any bytes but these."""
        if node is self.nothing:
            return self.any_bytes
        if node.kind == "other":
            return node.parts[0]  # type: ignore[no-any-return]
        return self._made("other", (node,), not node.nullable)

    def reference(self, name: str) -> Expression:
        """Return a reference to a definition of this name, which begins with a symbol."""
        return self._made("reference", (name,), False)

    def define(self, name: str, node: Expression) -> None:
        """Define a name. All names are defined before a reference is used."""
        self._definitions[name] = node

    def machine(self, machine: Machine, state: Any) -> Expression:
        """Return a machine in a state."""
        return self._made("machine", (machine, state), machine.accepts(state))


def _serial(node: Expression) -> int:
    return node.serial

"""Shared by `Positive` and `Negated`: products and unions of clauses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, product
from typing import Protocol

from tgi_async.grammar.schema.clause import ANYTHING, NOTHING, Clause, ObjectClause, Requirement
from tgi_async.grammar.schema.document import Document, SchemaNode
from tgi_async.grammar.schema.keywords import (
    ANNOTATIONS,
    DEFINITIONS,
    IDENTIFIERS,
    KNOWN,
    TYPES,
)

MAX_CLAUSES = 500
"""Most clauses of one place."""
FEW = 16
"""Number of clauses up to which all are kept; of more, those without a value are dropped early."""
MOST_COMPARED = 32
"""Most clauses that are compared with each other, to drop those that others contain."""
MOST_KEPT = 128
"""Clauses that are kept of a product with more than `MAX_CLAUSES`; the others are left out."""
MOST_WAYS = 32
"""Alternatives of not satisfying a schema, or only one option of a `oneOf`. One is enough; of more,
some are left out."""

EVERY = frozenset(TYPES)
OBJECT, ARRAY, STRING, NUMBER = (
    frozenset({kind}) for kind in ("object", "array", "string", "number")
)
TOGETHER = {
    "patternProperties": "properties",
    "additionalProperties": "properties",
    "items": "prefixItems",
    "minContains": "contains",
    "maxContains": "contains",
    "then": "if",
    "else": "if",
}
"""Keywords that mean something only together with another one, which stands for all of them."""

NO_MEANING = ANNOTATIONS | IDENTIFIERS | DEFINITIONS
LATER = frozenset({"unevaluatedItems", "unevaluatedProperties"})
ACTING = KNOWN - NO_MEANING - LATER


@dataclass(slots=True)
class Narrowing:
    """Counts how often values were left out: a part that has not changed it is exact."""

    count: int = 0


class Values(Protocol):
    """What is known of the values that clauses have."""

    def simplified(self, clause: Clause) -> Clause | None:
        """Return a clause with the same values; None: there are none."""

    def apart(self, one: Clause, other: Clause) -> bool:
        """Return whether surely no value is in both."""


class KeywordVisitor:
    """Visits the keywords of a schema. `expand` gives the clauses of a schema that must hold, or
    must not (its second argument)."""

    def __init__(
        self,
        document: Document,
        expand: Callable[..., list[Clause]],
        values: Values,
        narrowing: Narrowing,
    ) -> None:
        self._document = document
        self._expand = expand
        self._values = values
        self._narrowing = narrowing

    def _meet(self, left: list[Clause], right: list[Clause]) -> list[Clause]:
        return conjoin(left, right, self._values.simplified, self._narrowing)

    def _ways(self, left: list[Clause], right: list[Clause]) -> list[Clause]:
        """Return the first few clauses that are in one of either side."""
        met = (
            simple
            for one in left
            for other in right
            if (both := one.intersect(other)) and (simple := self._values.simplified(both))
        )
        return self._some(met, MOST_WAYS)

    def _some(self, clauses: Iterable[Clause], most: int) -> list[Clause]:
        """Return the first of them."""
        found = list(islice(clauses, most + 1))
        self._narrowing.count += len(found) > most
        return found[:most]

    def _children(self, node: SchemaNode, keyword: str) -> list[SchemaNode]:
        assert isinstance(node.value, dict)
        return [
            self._document.child(node, keyword, index) for index in range(len(node.value[keyword]))
        ]

    def _wanted(self, node: SchemaNode, *path: str | int) -> Requirement:
        child = self._document.child(node, *path)
        if isinstance(child.value, bool):
            return ANYTHING if child.value else NOTHING
        return ((child, True),) if child.value else ANYTHING

    def _unwanted(self, node: SchemaNode, *path: str | int) -> Requirement:
        child = self._document.child(node, *path)
        if isinstance(child.value, bool):
            return NOTHING if child.value else ANYTHING
        return ((child, False),) if child.value else NOTHING


def conjoin(
    left: list[Clause],
    right: list[Clause],
    simplified: Callable[[Clause], Clause | None],
    narrowing: Narrowing,
) -> list[Clause]:
    """Return the clauses that are in one of either side.

    Of many, those without a value are dropped. Of more than `MAX_CLAUSES`, some are kept that are
    among the first on both sides.
    """
    if len(left) * len(right) <= FEW:
        return [both for one in left for other in right if (both := one.intersect(other))]
    met: list[Clause] = []
    rest: list[Clause] = []
    for one in left:
        (met if any(one.within(other) for other in right) else rest).append(one)
    for one, other in _pairs(rest, right):
        clause = one.intersect(other)
        if clause is not None and (clause := simplified(clause)) is not None:
            met.append(clause)
            if len(met) >= MAX_CLAUSES:
                narrowing.count += 1
                return met[:MOST_KEPT]
    return _widest(met) if len(met) <= MOST_COMPARED else met


def _widest(clauses: list[Clause]) -> list[Clause]:
    """Return the clauses that are contained in no other."""
    kept: list[Clause] = []
    for clause in clauses:
        if not any(clause.within(other) for other in kept):
            kept = [other for other in kept if not other.within(clause)]
            kept.append(clause)
    return kept


def _pairs(left: list[Clause], right: list[Clause]) -> Iterable[tuple[Clause, Clause]]:
    """Yield all pairs; of very many, those first that are among the first on both sides."""
    pairs: Iterable[tuple[int, int]] = product(range(len(left)), range(len(right)))
    if len(left) * len(right) > MAX_CLAUSES:
        pairs = sorted(pairs, key=lambda pair: (pair[0] + 1) * (pair[1] + 1))
    return ((left[at], right[index]) for at, index in pairs)


def leading(node: SchemaNode) -> Iterable[str]:
    """Return the keywords that act, each group by its first name, in the order of the schema."""
    assert isinstance(node.value, dict)
    acting = (keyword for keyword in node.value if keyword in ACTING)
    return dict.fromkeys(TOGETHER.get(keyword, keyword) for keyword in acting)


def without(name: str) -> Clause:
    return Clause(objects=ObjectClause({name: NOTHING}))

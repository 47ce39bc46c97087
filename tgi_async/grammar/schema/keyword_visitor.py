"""What both sides of a keyword need: where it holds, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tgi_async.grammar.schema.clause import ANYTHING, NOTHING, Clause, Objects, Requirement
from tgi_async.grammar.schema.document import Document, Node
from tgi_async.grammar.schema.errors import UnsupportedSchema
from tgi_async.grammar.schema.keywords import (
    ANNOTATIONS,
    DEFINITIONS,
    IDENTIFIERS,
    KNOWN,
    TYPES,
)

MAX_CLAUSES = 500
"""Of one place."""
MOST_WAYS = 32
"""Not to satisfy a schema, or only one option of a `oneOf`. One is enough: of more, some are left
out.
"""

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


class KeywordVisitor:
    """`expand` gives the clauses of a schema that must hold, or must not (its second argument)."""

    def __init__(
        self,
        document: Document,
        expand: Callable[..., list[Clause]],
        unsatisfiable: Callable[[Clause], bool],
    ) -> None:
        self._document = document
        self._expand = expand
        self._unsatisfiable = unsatisfiable

    def _children(self, node: Node, keyword: str) -> list[Node]:
        assert isinstance(node.value, dict)
        return [
            self._document.child(node, keyword, index) for index in range(len(node.value[keyword]))
        ]

    def _wanted(self, node: Node, *path: str | int) -> Requirement:
        child = self._document.child(node, *path)
        if isinstance(child.value, bool):
            return ANYTHING if child.value else NOTHING
        return ((child, True),) if child.value else ANYTHING

    def _unwanted(self, node: Node, *path: str | int) -> Requirement:
        child = self._document.child(node, *path)
        if isinstance(child.value, bool):
            return NOTHING if child.value else ANYTHING
        return ((child, False),) if child.value else NOTHING


def conjoin(
    left: list[Clause], right: list[Clause], node: Node, most: int | None = None
) -> list[Clause]:
    """The clauses that are in one of either side; of more than `most`, the first.

    Raises UnsupportedSchema for too many.
    """
    met: list[Clause] = []
    for one in left:
        for other in right:
            if (clause := one.intersect(other)) is not None:
                met.append(clause)
                if len(met) == most:
                    return met
                if len(met) > MAX_CLAUSES:
                    raise _too_many(node)
    return met


def limited(clauses: list[Clause], node: Node) -> list[Clause]:
    """The same. Raises UnsupportedSchema for too many."""
    if len(clauses) > MAX_CLAUSES:
        raise _too_many(node)
    return clauses


def _too_many(node: Node) -> UnsupportedSchema:
    return UnsupportedSchema(f"{node.pointer} has more than {MAX_CLAUSES} alternatives")


def leading(node: Node) -> Iterable[str]:
    """The keywords that act, each group by its first name, in the order of the schema."""
    assert isinstance(node.value, dict)
    acting = (keyword for keyword in node.value if keyword in ACTING)
    return dict.fromkeys(TOGETHER.get(keyword, keyword) for keyword in acting)


def without(name: str) -> Clause:
    return Clause(objects=Objects({name: NOTHING}))

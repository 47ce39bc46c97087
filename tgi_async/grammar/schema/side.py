"""What both sides of a keyword need: where it holds, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tgi_async.grammar.schema.case import ANYTHING, NOTHING, Case, Objects, Wanted
from tgi_async.grammar.schema.document import Document, Node
from tgi_async.grammar.schema.errors import UnsupportedSchema, unsupported
from tgi_async.grammar.schema.keywords import (
    ANNOTATIONS,
    DEFINITIONS,
    IDENTIFIERS,
    KNOWN,
    TYPES,
)

MAX_CASES = 500
"""Of one place."""

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


class Side:
    """`expand` gives the cases of a schema that must hold, or must not (its second argument)."""

    def __init__(
        self,
        document: Document,
        expand: Callable[..., list[Case]],
        hopeless: Callable[[Case], bool],
    ) -> None:
        self._document = document
        self._expand = expand
        self._hopeless = hopeless

    def _children(self, node: Node, keyword: str) -> list[Node]:
        assert isinstance(node.value, dict)
        return [
            self._document.child(node, keyword, index) for index in range(len(node.value[keyword]))
        ]

    def _wanted(self, node: Node, *path: str | int) -> Wanted:
        child = self._document.child(node, *path)
        if isinstance(child.value, bool):
            return ANYTHING if child.value else NOTHING
        return ((child, True),) if child.value else ANYTHING

    def _unwanted(self, node: Node, *path: str | int) -> Wanted:
        child = self._document.child(node, *path)
        if isinstance(child.value, bool):
            return NOTHING if child.value else ANYTHING
        return ((child, False),) if child.value else NOTHING


def meet(left: list[Case], right: list[Case], node: Node) -> list[Case]:
    """The cases that are in one of either side."""
    met: list[Case] = []
    for one in left:
        for other in right:
            if (case := one.also(other)) is not None:
                met.append(case)
                if len(met) > MAX_CASES:
                    raise _too_many(node)
    return met


def limited(cases: list[Case], node: Node) -> list[Case]:
    """The same. Raises UnsupportedSchema for too many."""
    if len(cases) > MAX_CASES:
        raise _too_many(node)
    return cases


def _too_many(node: Node) -> UnsupportedSchema:
    return UnsupportedSchema(f"{node.pointer} has more than {MAX_CASES} cases")


def leading(node: Node) -> Iterable[str]:
    """The keywords that act, each group by its first name, in the order of the schema."""
    assert isinstance(node.value, dict)
    for keyword in node.value:
        if keyword not in KNOWN:
            raise unsupported(keyword, node.pointer, "Draft 2020-12 has no such keyword")
    acting = (keyword for keyword in node.value if keyword not in NO_MEANING | LATER)
    return dict.fromkeys(TOGETHER.get(keyword, keyword) for keyword in acting)


def without(name: str) -> Case:
    return Case(objects=Objects({name: NOTHING}))

"""Expand schemas to clauses.

A keyword becomes the clauses in which it holds (`positive`), or those in which it does not
(`negated`); keywords side by side are conjoined, alternatives are put one after the other. What is
inside an array or an object stays a `clause.Requirement`, and becomes clauses when its turn comes:
so recursion ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from tgi_async.grammar.schema.clause import ANY, NOTHING, Clause, Requirement, both
from tgi_async.grammar.schema.document import Document, SchemaNode
from tgi_async.grammar.schema.errors import UnsupportedSchema
from tgi_async.grammar.schema.keyword_visitor import OBJECT, Narrowing, conjoin
from tgi_async.grammar.schema.negated import Negated
from tgi_async.grammar.schema.positive import Positive
from tgi_async.grammar.schema.resolve import resolved

MOST_RESOLVED = 128
"""Most clauses that those of one place become; see `resolve`."""
SCALAR = frozenset({"string", "boolean"})
MOST_LOOKS = 2_000
"""Most checks of what is required of properties, which drop clauses without a value early."""
DEEPEST_LOOK = 2
"""Most nested properties whose requirements are checked."""


class Expander:
    """Expands requirements. All methods raise UnsupportedSchema."""

    def __init__(self, document: Document) -> None:
        self._narrowing = Narrowing()
        parts = (document, self.expand, self, self._narrowing)
        self._positive = Positive(*parts)
        self._negated = Negated(*parts)
        self._known: dict[Requirement, list[Clause]] = {}
        self._nodes: dict[tuple[SchemaNode, bool, bool], list[Clause]] = {}
        self._narrow: set[object] = set()
        """Nodes and requirements some of whose values are left out."""
        self._open: set[tuple[SchemaNode, bool, bool]] = set()
        self._empty: dict[Requirement, bool] = {}
        self._few: dict[Requirement, frozenset[object] | None] = {}
        self._n_looks = 0
        self._depth = 0
        """Depth of nested checks."""

    def clauses(self, requirement: Requirement) -> list[Clause]:
        """Return clauses of which a value that satisfies the requirement is in one."""
        found = self._known.get(requirement)
        if found is None:
            clauses = self._conjoined(requirement)
            most = max(1, MOST_RESOLVED // max(1, len(clauses)))
            found = self._known[requirement] = [
                one for clause in clauses for one in islice(self._resolved(clause), most)
            ]
        return found

    def _conjoined(self, requirement: Requirement) -> list[Clause]:
        clauses = [ANY]
        for node, positive in requirement:
            clauses = conjoin(
                clauses, self.expand(node, positive), self.simplified, self._narrowing
            )
        return clauses

    def _resolved(self, clause: Clause) -> Iterator[Clause]:
        return (one for one in resolved(clause) if self.simplified(one) is not None)

    def simplified(self, clause: Clause) -> Clause | None:
        """Return the clause without properties that cannot exist; None: there is no value.

        As far as one look at what it requires of properties tells.
        """
        if clause.types != OBJECT:
            return clause
        objects = clause.objects
        if any(self._nothing_is(objects.requirement(name)) for name in objects.required):
            return None
        gone = {
            name: NOTHING
            for name, requirement in objects.properties.items()
            if len(requirement) > 1 and self._nothing_is(requirement)
        }
        if not gone:
            return clause
        return replace(clause, objects=replace(objects, properties={**objects.properties, **gone}))

    def apart(self, one: Clause, other: Clause) -> bool:
        """Return whether no value is in both, as far as their requirements of properties show.

        Where values were left out on the way, it is not known.
        """
        types = one.types & other.types
        if not types:
            return True
        before = self._narrowing.count
        if types == OBJECT:
            left, right = one.objects, other.objects
            for name in left.required:
                if name in right.required:
                    few = self._constants(left.requirement(name))
                    others = self._constants(right.requirement(name))
                    if few is not None and others is not None and few.isdisjoint(others):
                        return True
            for name in dict.fromkeys((*left.required, *right.required)):
                wanted = both(left.requirement(name), right.requirement(name))
                if wanted == NOTHING or (len(wanted) > 1 and self._nothing_is(wanted)):
                    return self._narrowing.count == before
        both_of = one.intersect(other)
        return both_of is None or (
            types != OBJECT and self.simplified(both_of) is None and self._narrowing.count == before
        )

    def _constants(self, requirement: Requirement) -> frozenset[object] | None:
        """Return all values that satisfy the requirement, if they are texts, true or false; else
        None."""
        if requirement not in self._few:
            self._few[requirement] = None  # while it is being expanded
            before = self._narrowing.count
            try:
                clauses = self._conjoined(requirement)
            except UnsupportedSchema:
                clauses = [ANY]
            found: set[object] = set()
            for clause in clauses:
                if not clause.types <= SCALAR or (
                    "string" in clause.types and clause.strings.among is None
                ):
                    break
                found |= clause.booleans if "boolean" in clause.types else set()
                found |= set(clause.strings.among or ()) if "string" in clause.types else set()
            else:
                if self._narrowing.count == before:
                    self._few[requirement] = frozenset(found)
        return self._few[requirement]

    def _nothing_is(self, requirement: Requirement) -> bool:
        known = self._empty.get(requirement)
        if known is None:
            if self._depth == DEEPEST_LOOK or self._n_looks == MOST_LOOKS:
                return False
            self._n_looks += 1
            self._depth += 1
            before = self._narrowing.count
            try:
                clauses = self._conjoined(requirement)
                known = all(self.simplified(clause) is None for clause in clauses)
                self._empty[requirement] = known
            except UnsupportedSchema:
                return False  # reported when its turn comes; or it leads back to where this began
            finally:
                self._depth -= 1
            if self._narrowing.count != before:
                self._narrow.add(requirement)
        elif known and requirement in self._narrow:
            self._narrowing.count += 1
        return known

    def expand(self, node: SchemaNode, positive: bool, track: bool = False) -> list[Clause]:
        """Expand a requirement. `track`: clauses distinguish what was evaluated, as `unevaluated*`
        needs."""
        if isinstance(node.value, bool):
            return [ANY] if node.value is positive else []
        key = (node, positive, track)
        found = self._nodes.get(key)
        if found is None:
            if key in self._open:
                raise UnsupportedSchema(f"`$ref` at {node.pointer} leads back to itself")
            self._open.add(key)
            before = self._narrowing.count
            try:
                if positive:
                    found = self._positive.clauses(node, track)
                else:
                    found = [clause.unseen() for clause in self._negated.clauses(node)]
            finally:
                self._open.discard(key)
            self._nodes[key] = found
            if self._narrowing.count != before:
                self._narrow.add(key)
        elif key in self._narrow:
            self._narrowing.count += 1
        return found

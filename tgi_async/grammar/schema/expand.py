"""From schemas to clauses.

A keyword becomes the clauses in which it holds (`positive`), or those in which it does not
(`negated`); keywords side by side are conjoined, alternatives are put one after the other. What is
inside an array or an object stays a `clause.Requirement`, and becomes clauses when its turn comes:
so recursion ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tgi_async.grammar.schema.clause import ANY, Clause, Requirement
from tgi_async.grammar.schema.document import Document, Node
from tgi_async.grammar.schema.errors import UnsupportedSchema
from tgi_async.grammar.schema.keyword_visitor import OBJECT, conjoin
from tgi_async.grammar.schema.negated import Negated
from tgi_async.grammar.schema.positive import Positive
from tgi_async.grammar.schema.resolve import resolved

MOST_RESOLVED = 128
"""Clauses that those of one place become; see `resolve`."""


class Expander:
    """Raises UnsupportedSchema from all methods."""

    def __init__(self, document: Document) -> None:
        self._positive = Positive(document, self.expand, self.unsatisfiable)
        self._negated = Negated(document, self.expand, self.unsatisfiable)
        self._known: dict[Requirement, list[Clause]] = {}
        self._nodes: dict[tuple[Node, bool, bool], list[Clause]] = {}
        self._open: set[tuple[Node, bool, bool]] = set()

    def clauses(self, requirement: Requirement) -> list[Clause]:
        """Those that a value may be in to be as requirement."""
        found = self._known.get(requirement)
        if found is None:
            clauses = [ANY]
            for node, positive in requirement:
                clauses = conjoin(clauses, self.expand(node, positive), node)
            most = max(1, MOST_RESOLVED // max(1, len(clauses)))
            found = self._known[requirement] = [
                one for clause in clauses for one in islice(self._resolved(clause), most)
            ]
        return found

    def _resolved(self, clause: Clause) -> Iterator[Clause]:
        return (one for one in resolved(clause) if not self.unsatisfiable(one))

    def unsatisfiable(self, clause: Clause) -> bool:
        """Whether no value is in this clause, as far as one look at what it requires tells."""
        if clause.types != OBJECT:
            return False
        return any(
            self._nothing_is(clause.objects.requirement(name)) for name in clause.objects.required
        )

    def _nothing_is(self, requirement: Requirement) -> bool:
        clauses = [ANY]
        try:
            for node, positive in requirement:
                clauses = conjoin(clauses, self.expand(node, positive), node)
        except UnsupportedSchema:
            return False  # told when its turn comes; or it leads back to where this began
        return not clauses

    def expand(self, node: Node, positive: bool, track: bool = False) -> list[Clause]:
        """`track`: clauses tell apart what was looked at, as `unevaluated*` needs."""
        if isinstance(node.value, bool):
            return [ANY] if node.value is positive else []
        key = (node, positive, track)
        found = self._nodes.get(key)
        if found is None:
            if key in self._open:
                raise UnsupportedSchema(f"`$ref` at {node.pointer} leads back to itself")
            self._open.add(key)
            try:
                if positive:
                    found = self._positive.clauses(node, track)
                else:
                    found = [clause.unseen() for clause in self._negated.clauses(node)]
            finally:
                self._open.discard(key)
            self._nodes[key] = found
        return found

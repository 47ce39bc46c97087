"""From schemas to cases.

A keyword becomes the cases in which it holds (`holds`), or those in which it does not (`fails`);
keywords side by side are met, alternatives are put one after the other. What is inside an array or
an object is left as it is wanted (`case.Wanted`), and becomes cases when its turn comes: so
recursion ends.
"""

from __future__ import annotations

from tgi_async.grammar.schema.case import ANY, Case, Wanted
from tgi_async.grammar.schema.document import Document, Node
from tgi_async.grammar.schema.errors import UnsupportedSchema
from tgi_async.grammar.schema.fails import Fails
from tgi_async.grammar.schema.holds import Holds
from tgi_async.grammar.schema.side import OBJECT, meet


class Expander:
    """Raises UnsupportedSchema from all methods."""

    def __init__(self, document: Document) -> None:
        self._holds = Holds(document, self.expand, self.hopeless)
        self._fails = Fails(document, self.expand, self.hopeless)
        self._known: dict[Wanted, list[Case]] = {}
        self._nodes: dict[tuple[Node, bool, bool], list[Case]] = {}
        self._open: set[tuple[Node, bool, bool]] = set()

    def cases(self, wanted: Wanted) -> list[Case]:
        """Those that a value may be in to be as wanted."""
        found = self._known.get(wanted)
        if found is None:
            cases = [ANY]
            for node, positive in wanted:
                cases = meet(cases, self.expand(node, positive), node)
            found = self._known[wanted] = [case for case in cases if not self.hopeless(case)]
        return found

    def hopeless(self, case: Case) -> bool:
        """Whether no value is in this case, as far as one look at what it requires tells."""
        if case.types != OBJECT:
            return False
        return any(self._nothing_is(case.objects.wanted(name)) for name in case.objects.required)

    def _nothing_is(self, wanted: Wanted) -> bool:
        cases = [ANY]
        try:
            for node, positive in wanted:
                cases = meet(cases, self.expand(node, positive), node)
        except UnsupportedSchema:
            return False  # told when its turn comes; or it leads back to where this began
        return not cases

    def expand(self, node: Node, positive: bool, track: bool = False) -> list[Case]:
        """`track`: cases tell apart what was looked at, as `unevaluatedItems` and the like need."""
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
                    found = self._holds.cases(node, track)
                else:
                    found = [case.unseen() for case in self._fails.cases(node)]
            finally:
                self._open.discard(key)
            self._nodes[key] = found
        return found

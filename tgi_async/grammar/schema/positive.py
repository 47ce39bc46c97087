"""The clauses in which the keywords of a schema hold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from tgi_async.grammar.schema.clause import (
    ANY,
    ANYTHING,
    NOTHING,
    ArrayClause,
    Clause,
    NumberClause,
    ObjectClause,
    Requirement,
    SomeItems,
    StringClause,
    UnsupportedKeyword,
    both,
)
from tgi_async.grammar.schema.document import SchemaNode
from tgi_async.grammar.schema.errors import unsupported
from tgi_async.grammar.schema.keyword_visitor import (
    LATER,
    MAX_CLAUSES,
    OBJECT,
    KeywordVisitor,
    leading,
    without,
)
from tgi_async.grammar.schema.regex import NotRegular
from tgi_async.grammar.schema.scalars import (
    constant_clauses,
    format_clause,
    intersection,
    none_of_pattern,
    pattern_clause,
    plain_pattern,
)


class Positive(KeywordVisitor):
    """Expands keywords. Raises UnsupportedSchema."""

    def clauses(self, node: SchemaNode, track: bool) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        track = track or not LATER.isdisjoint(schema)
        clauses = [ANY]
        for keyword in leading(node):
            clauses = self._meet(clauses, self._keyword(node, keyword, track))
        for keyword in schema:
            if keyword in LATER:
                clauses = self._unevaluated(node, keyword, clauses)
        return clauses

    def _keyword(self, node: SchemaNode, keyword: str, track: bool) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        value: Any = schema.get(keyword)
        if (simple := _SIMPLE.get(keyword)) is not None:
            return [simple(value)]
        match keyword:
            case "type":
                return [types_clause(value)]
            case "pattern":
                return [pattern_clause(value, node.pointer)]
            case "format":
                return [format_clause(value, node.pointer)]
            case "const":
                return constant_clauses(self._document, node, [value], ("const",))
            case "enum":
                return constant_clauses(self._document, node, value, ("enum", None))
            case "properties":
                return [Clause(objects=self._objects(node, track))]
            case "prefixItems":
                return [Clause(arrays=self._arrays(node))]
            case "required":
                return [Clause(objects=ObjectClause(required=tuple(value)))]
            case "minProperties" | "maxProperties":
                least, most = _bounds(keyword, value)
                at = node.pointer
                return [Clause(objects=ObjectClause(least=least, most=most, bounded_at=at))]
            case "uniqueItems":
                return [Clause(arrays=ArrayClause(unique=True))] if value else [ANY]
            case "contains":
                return self._contains(node, track)
            case "propertyNames":
                return self._names(node)
            case "dependentRequired":
                return self._dependent_required(node)
            case "dependentSchemas":
                return self._dependent_schemas(node, track)
            case "allOf":
                clauses = [ANY]
                for child in self._children(node, keyword):
                    clauses = self._meet(clauses, self._expand(child, True, track))
                return clauses
            case "anyOf":
                return self._any(node, track)
            case "oneOf":
                return self._one(node, track)
            case "not":
                return self._expand(self._document.child(node, keyword), False)
            case "if":
                return self._if(node, track)
            case "$ref" | "$dynamicRef":
                return self._expand(self._document.target(node, keyword), True, track)
        raise AssertionError(keyword)

    def _objects(self, node: SchemaNode, track: bool) -> ObjectClause:
        schema = node.value
        assert isinstance(schema, dict)
        at = f"{node.pointer}/patternProperties"
        patterns: dict[str, Requirement] = {}
        for pattern in schema.get("patternProperties", {}):
            plain = plain_pattern(pattern, at)
            more = self._wanted(node, "patternProperties", pattern)
            patterns[plain] = both(patterns.get(plain, ANYTHING), more)
        return ObjectClause(
            {name: self._wanted(node, "properties", name) for name in schema.get("properties", {})},
            patterns,
            self._wanted(node, "additionalProperties")
            if "additionalProperties" in schema
            else ANYTHING,
            names_seen=tuple(schema.get("properties", {})) if track else (),
            patterns_seen=tuple(patterns) if track else (),
            all_seen=track and "additionalProperties" in schema,
        )

    def _arrays(self, node: SchemaNode) -> ArrayClause:
        schema = node.value
        assert isinstance(schema, dict)
        length = len(schema.get("prefixItems", ()))
        return ArrayClause(
            tuple(self._wanted(node, "prefixItems", index) for index in range(length)),
            self._wanted(node, "items") if "items" in schema else ANYTHING,
            evaluated=None if "items" in schema else length,
        )

    def _contains(self, node: SchemaNode, track: bool) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        if "contains" not in schema:
            return [ANY]  # the other two mean nothing then
        wanted = self._wanted(node, "contains")
        least, most = int(schema.get("minContains", 1)), schema.get("maxContains")
        if track:
            why = "together with `unevaluatedItems` it is not followed"
            return [
                Clause(
                    arrays=ArrayClause(beyond=(UnsupportedKeyword("contains", node.pointer, why),))
                )
            ]
        if wanted == ANYTHING:
            return [
                Clause(arrays=ArrayClause(least=least, most=None if most is None else int(most)))
            ]
        if wanted == NOTHING:
            return [Clause(arrays=ArrayClause(most=-1))] if least else [ANY]
        if most is None and least == 0:
            return [ANY]
        unwanted = self._unwanted(node, "contains")
        some = SomeItems(wanted, unwanted, least, None if most is None else int(most))
        return [Clause(arrays=ArrayClause(some=(some,)))]

    def _names(self, node: SchemaNode) -> list[Clause]:
        """Expand `propertyNames`: allowed names become properties or patterns."""
        child = self._document.child(node, "propertyNames")
        allowed = names_allowed(node, self._expand(child, True))
        return [Clause(objects=one) for one in allowed] or [ANY]

    def _dependent_required(self, node: SchemaNode) -> list[Clause]:
        assert isinstance(node.value, dict)
        clauses = [ANY]
        for name, others in node.value["dependentRequired"].items():
            if others:
                # It may be present or not: the others are required.
                there = Clause(
                    OBJECT, objects=ObjectClause({name: ANYTHING}, required=tuple(others))
                )
                clauses = self._meet(clauses, [without(name), there])
        return clauses

    def _dependent_schemas(self, node: SchemaNode, track: bool) -> list[Clause]:
        assert isinstance(node.value, dict)
        clauses = [ANY]
        for name in node.value["dependentSchemas"]:
            child = self._document.child(node, "dependentSchemas", name)
            # What is evaluated depends on whether it is present; for the rest it may be or not.
            named = ObjectClause(required=(name,)) if track else ObjectClause({name: ANYTHING})
            there = self._meet([Clause(OBJECT, objects=named)], self._expand(child, True, track))
            clauses = self._meet(clauses, [without(name), *there])
        return clauses

    def _any(self, node: SchemaNode, track: bool) -> list[Clause]:
        clauses: list[Clause] = []
        for child in self._children(node, "anyOf"):
            option = self._expand(child, True, track)
            together = self._meet(clauses, option) if track else []
            clauses = self._some([*clauses, *option, *together], MAX_CLAUSES)
        return clauses

    def _one(self, node: SchemaNode, track: bool) -> list[Clause]:
        children = self._children(node, "oneOf")
        options: list[list[Clause]] = []
        narrow: list[bool] = []
        for child in children:
            before = self._narrowing.count
            options.append(self._expand(child, True, track))
            narrow.append(self._narrowing.count != before)
        clauses: list[Clause] = []
        for index, option in enumerate(options):
            for other, child in enumerate(children):
                if other != index and (narrow[other] or self._overlap(option, options[other])):
                    # One way to be outside the other one is enough: of many, some are kept.
                    option = self._ways(option, self._expand(child, False))
            clauses = self._some([*clauses, *option], MAX_CLAUSES)
        return clauses

    def _overlap(self, left: list[Clause], right: list[Clause]) -> bool:
        return any(not self._values.apart(one, other) for one in left for other in right)

    def _if(self, node: SchemaNode, track: bool) -> list[Clause]:
        assert isinstance(node.value, dict)
        if "if" not in node.value or not (track or node.value.keys() & {"then", "else"}):
            return [ANY]
        condition = self._document.child(node, "if")
        branches: list[list[Clause]] = []
        for keyword, holds in (("then", True), ("else", False)):
            branch = self._expand(condition, holds, track and holds)
            if keyword in node.value:
                child = self._document.child(node, keyword)
                branch = self._meet(branch, self._expand(child, True, track))
            branches.append(branch)
        # Interleaved: where some have to be left out, they are not all of one side.
        return [one for pair in zip_longest(*branches) for one in pair if one is not None]

    def _unevaluated(self, node: SchemaNode, keyword: str, clauses: list[Clause]) -> list[Clause]:
        wanted = self._wanted(node, keyword)
        met: list[Clause] = []
        for clause in clauses:
            if keyword == "unevaluatedProperties":
                seen = clause.objects
                rest = ObjectClause(
                    dict.fromkeys(seen.names_seen, ANYTHING),
                    dict.fromkeys(seen.patterns_seen, ANYTHING),
                    ANYTHING if seen.all_seen else wanted,
                    all_seen=True,
                )
                met += self._meet([clause], [Clause(objects=rest)])
            else:
                count = clause.arrays.evaluated
                items = ArrayClause((ANYTHING,) * (count or 0), wanted, evaluated=None)
                met += [clause] if count is None else self._meet([clause], [Clause(arrays=items)])
        return met


def types_clause(value: str | list[str]) -> Clause:
    names = {value} if isinstance(value, str) else set(value)
    integer = "integer" in names and "number" not in names
    types = frozenset("number" if name == "integer" else name for name in names)
    return Clause(types, numbers=NumberClause(integer=integer))


def names_allowed(node: SchemaNode, clauses: list[Clause]) -> list[ObjectClause]:
    """Return objects whose names are in one of the clauses; empty if any name is.

    Raises UnsupportedSchema.
    """
    allowed = [clause.strings for clause in clauses if "string" in clause.types]
    if StringClause() in allowed:
        return []
    names: list[str] = []
    patterns: list[str] = []
    for strings in allowed:
        if strings.among is not None:
            names += strings.among
            continue
        found = [pattern for pattern, _ in strings.patterns]
        if strings.least > 0 or strings.most is not None:
            most = "" if strings.most is None else strings.most
            found.append(f"^(?s:.{{{strings.least},{most}}})$")
        if strings.none_of:
            found.append(none_of_pattern(strings.none_of))
        if strings.formats or strings.beyond:
            why = "formats and some patterns that must not match are not followed there"
            raise unsupported("propertyNames", node.pointer, why)
        if len(found) > 1:
            try:
                found = [intersection(tuple(found))]
            except NotRegular as error:
                raise unsupported("propertyNames", node.pointer, str(error)) from error
        patterns += found
    return [
        ObjectClause(dict.fromkeys(names, ANYTHING), dict.fromkeys(patterns, ANYTHING), NOTHING)
    ]


def _bounds(keyword: str, value: float) -> tuple[int, int | None]:
    return (int(value), None) if keyword.startswith("min") else (0, int(value))


_SIMPLE: dict[str, Callable[[Any], Clause]] = {
    "minimum": lambda value: Clause(numbers=NumberClause(minimum=value)),
    "maximum": lambda value: Clause(numbers=NumberClause(maximum=value)),
    "exclusiveMinimum": lambda value: Clause(numbers=NumberClause(above=value)),
    "exclusiveMaximum": lambda value: Clause(numbers=NumberClause(below=value)),
    "multipleOf": lambda value: Clause(numbers=NumberClause(multiples=(value,))),
    "minLength": lambda value: Clause(strings=StringClause(least=int(value))),
    "maxLength": lambda value: Clause(strings=StringClause(most=int(value))),
    "minItems": lambda value: Clause(arrays=ArrayClause(least=int(value))),
    "maxItems": lambda value: Clause(arrays=ArrayClause(most=int(value))),
}

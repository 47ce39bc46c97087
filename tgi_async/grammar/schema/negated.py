"""The clauses in which the keywords of a schema do not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgi_async.grammar.schema.clause import (
    ANY,
    ANYTHING,
    NOTHING,
    ArrayClause,
    Clause,
    NumberClause,
    ObjectClause,
    SomeItems,
    SomeProperty,
    StringClause,
    UnsupportedKeyword,
)
from tgi_async.grammar.schema.document import SchemaNode
from tgi_async.grammar.schema.keyword_visitor import (
    ARRAY,
    EVERY,
    LATER,
    MOST_WAYS,
    NUMBER,
    OBJECT,
    STRING,
    KeywordVisitor,
    leading,
    without,
)
from tgi_async.grammar.schema.positive import names_allowed, types_clause
from tgi_async.grammar.schema.scalars import (
    format_clause,
    other_strings,
    other_than,
    plain_pattern,
)


class Negated(KeywordVisitor):
    """Negates keywords. Raises UnsupportedSchema."""

    def clauses(self, node: SchemaNode) -> list[Clause]:
        assert isinstance(node.value, dict)
        clauses: list[Clause] = []
        for keyword in leading(node):
            clauses = self._some([*clauses, *self._negated(node, keyword)], MOST_WAYS)
        for keyword in LATER & node.value.keys():
            if self._wanted(node, keyword) != ANYTHING:
                beyond = UnsupportedKeyword(keyword, node.pointer, "under a `not`, `if` or `oneOf`")
                clauses.append(
                    Clause(OBJECT, objects=ObjectClause(beyond=(beyond,)))
                    if keyword == "unevaluatedProperties"
                    else Clause(ARRAY, arrays=ArrayClause(beyond=(beyond,)))
                )
        return clauses

    def _negated(self, node: SchemaNode, keyword: str) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        value: Any = schema.get(keyword)
        beyond = UnsupportedKeyword(keyword, node.pointer, "under a `not`, `if` or `oneOf`")
        no_arrays = [Clause(ARRAY, arrays=ArrayClause(beyond=(beyond,)))]
        if (simple := _OPPOSITE.get(keyword)) is not None:
            return simple(value)
        match keyword:
            case "type":
                return _other_types(value)
            case "multipleOf":
                return [Clause(NUMBER, numbers=NumberClause(not_multiples=(value,)))]
            case "pattern":
                plain_pattern(value, node.pointer)
                return [Clause(STRING, strings=other_strings(value, beyond))]
            case "format":
                if format_clause(value, node.pointer) == ANY:
                    return []
                strings = StringClause(negated=(value,), beyond=((None, beyond),))
                return [Clause(STRING, strings=strings)]
            case "const":
                return other_than(self._document, node, value, ("const",))
            case "enum":
                clauses = [ANY]
                for index, one in enumerate(value):
                    others = other_than(self._document, node, one, ("enum", index))
                    clauses = self._ways(clauses, others)
                return clauses
            case "properties":
                return self._other_objects(node)
            case "prefixItems":
                return self._other_arrays(node)
            case "required":
                return [Clause(OBJECT, objects=without(name).objects) for name in value]
            case "uniqueItems":
                return no_arrays if value else []
            case "contains":
                return self._other_contents(node)
            case "propertyNames":
                some = [
                    SomeProperty(ANYTHING, None, tuple(one.properties), tuple(one.patterns))
                    for one in names_allowed(
                        node, self._expand(self._document.child(node, keyword), True)
                    )
                ]
                return [Clause(OBJECT, objects=ObjectClause(some=(one,))) for one in some]
            case "dependentRequired":
                return [
                    Clause(OBJECT, objects=ObjectClause({other: NOTHING}, required=(name,)))
                    for name, others in value.items()
                    for other in others
                    if other != name
                ]
            case "dependentSchemas":
                clauses = []
                for name in value:
                    child = self._document.child(node, keyword, name)
                    there = [Clause(OBJECT, objects=ObjectClause(required=(name,)))]
                    clauses += self._ways(there, self._expand(child, False))
                return clauses
            case "allOf":
                return [
                    clause
                    for child in self._children(node, keyword)
                    for clause in self._expand(child, False)
                ]
            case "anyOf":
                clauses = [ANY]
                for child in self._children(node, keyword):
                    clauses = self._ways(clauses, self._expand(child, False))
                return clauses
            case "oneOf":
                return self._none_or_several(node)
            case "not":
                return self._expand(self._document.child(node, keyword), True)
            case "if":
                return self._broken_if(node)
            case "$ref" | "$dynamicRef":
                return self._expand(self._document.target(node, keyword), False)
        raise AssertionError(keyword)

    def _other_objects(self, node: SchemaNode) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        clauses = []
        for name in schema.get("properties", {}):
            unwanted = self._unwanted(node, "properties", name)
            if unwanted != NOTHING:
                clauses.append(
                    Clause(OBJECT, objects=ObjectClause({name: unwanted}, required=(name,)))
                )
        patterns = schema.get("patternProperties", {})
        at = f"{node.pointer}/patternProperties"
        plain = {pattern: plain_pattern(pattern, at) for pattern in patterns}
        some = [
            SomeProperty(self._unwanted(node, "patternProperties", pattern), plain[pattern])
            for pattern in patterns
        ]
        if "additionalProperties" in schema:
            names = tuple(schema.get("properties", {}))
            unwanted = self._unwanted(node, "additionalProperties")
            some.append(SomeProperty(unwanted, None, names, tuple(plain.values())))
        for one in some:
            if one.requirement != NOTHING:
                clauses.append(Clause(OBJECT, objects=ObjectClause(some=(one,))))
        return clauses

    def _other_contents(self, node: SchemaNode) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        if "contains" not in schema:
            return []
        least, most = int(schema.get("minContains", 1)), schema.get("maxContains")
        wanted, unwanted = self._wanted(node, "contains"), self._unwanted(node, "contains")
        some = [SomeItems(wanted, unwanted, 0, least - 1)] if least else []
        some += [SomeItems(wanted, unwanted, int(most) + 1)] if most is not None else []
        return [Clause(ARRAY, arrays=ArrayClause(some=(one,))) for one in some]

    def _other_arrays(self, node: SchemaNode) -> list[Clause]:
        schema = node.value
        assert isinstance(schema, dict)
        length = len(schema.get("prefixItems", ()))
        clauses = []
        for index in range(length):
            unwanted = self._unwanted(node, "prefixItems", index)
            if unwanted != NOTHING:
                prefix = (ANYTHING,) * index + (unwanted,)
                clauses.append(Clause(ARRAY, arrays=ArrayClause(prefix, least=index + 1)))
        if "items" in schema:
            wanted = self._wanted(node, "items")
            if wanted == NOTHING:
                clauses.append(Clause(ARRAY, arrays=ArrayClause(least=length + 1)))
            elif wanted != ANYTHING:
                some = SomeItems(self._unwanted(node, "items"), wanted, start=length)
                clauses.append(Clause(ARRAY, arrays=ArrayClause(some=(some,))))
        return clauses

    def _none_or_several(self, node: SchemaNode) -> list[Clause]:
        children = self._children(node, "oneOf")
        none = [ANY]
        for child in children:
            none = self._ways(none, self._expand(child, False))
        several: list[Clause] = []
        for index, child in enumerate(children):
            for other in children[:index]:
                pair = self._ways(self._expand(child, True), self._expand(other, True))
                several = self._some([*several, *pair], MOST_WAYS)
        return [*none, *several]

    def _broken_if(self, node: SchemaNode) -> list[Clause]:
        assert isinstance(node.value, dict)
        if "if" not in node.value:
            return []
        condition = self._document.child(node, "if")
        clauses: list[Clause] = []
        for keyword, holds in (("then", True), ("else", False)):
            if keyword in node.value:
                broken = self._expand(self._document.child(node, keyword), False)
                clauses += self._ways(self._expand(condition, holds), broken)
        return clauses


def _other_types(value: str | list[str]) -> list[Clause]:
    held = types_clause(value)
    types = EVERY - held.types
    clauses = [Clause(types)] if types else []
    if "number" in held.types and held.numbers.integer:
        clauses.append(Clause(NUMBER, numbers=NumberClause(not_multiples=(1,))))
    return clauses


_OPPOSITE: dict[str, Callable[[Any], list[Clause]]] = {
    "minimum": lambda value: [Clause(NUMBER, numbers=NumberClause(below=value))],
    "maximum": lambda value: [Clause(NUMBER, numbers=NumberClause(above=value))],
    "exclusiveMinimum": lambda value: [Clause(NUMBER, numbers=NumberClause(maximum=value))],
    "exclusiveMaximum": lambda value: [Clause(NUMBER, numbers=NumberClause(minimum=value))],
    "minLength": lambda value: (
        [Clause(STRING, strings=StringClause(most=int(value) - 1))] * (value > 0)
    ),
    "maxLength": lambda value: [Clause(STRING, strings=StringClause(least=int(value) + 1))],
    "minItems": lambda value: (
        [Clause(ARRAY, arrays=ArrayClause(most=int(value) - 1))] * (value > 0)
    ),
    "maxItems": lambda value: [Clause(ARRAY, arrays=ArrayClause(least=int(value) + 1))],
    "minProperties": lambda value: (
        [Clause(OBJECT, objects=ObjectClause(most=int(value) - 1))] * (value > 0)
    ),
    "maxProperties": lambda value: [Clause(OBJECT, objects=ObjectClause(least=int(value) + 1))],
}

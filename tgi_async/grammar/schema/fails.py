"""The cases in which the keywords of a schema do not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgi_async.grammar.schema.case import (
    ANY,
    ANYTHING,
    NOTHING,
    Arrays,
    Beyond,
    Case,
    Numbers,
    Objects,
    Strings,
)
from tgi_async.grammar.schema.document import Node
from tgi_async.grammar.schema.errors import unsupported
from tgi_async.grammar.schema.holds import types_case
from tgi_async.grammar.schema.leaves import other_than, pattern_case
from tgi_async.grammar.schema.side import (
    ARRAY,
    EVERY,
    LATER,
    NUMBER,
    OBJECT,
    STRING,
    Side,
    leading,
    limited,
    meet,
    without,
)


class Fails(Side):
    """Raises UnsupportedSchema."""

    def cases(self, node: Node) -> list[Case]:
        assert isinstance(node.value, dict)
        cases: list[Case] = []
        for keyword in leading(node):
            cases = limited([*cases, *self._negated(node, keyword)], node)
        for keyword in LATER & node.value.keys():
            if self._wanted(node, keyword) != ANYTHING:
                raise unsupported(keyword, node.pointer, "under a `not`, `if` or `oneOf`")
        return cases

    def _negated(self, node: Node, keyword: str) -> list[Case]:
        schema = node.value
        assert isinstance(schema, dict)
        value: Any = schema.get(keyword)
        beyond = Beyond(keyword, node.pointer, "under a `not`, `if` or `oneOf`")
        no_objects = [Case(OBJECT, objects=Objects(beyond=(beyond,)))]
        no_arrays = [Case(ARRAY, arrays=Arrays(beyond=(beyond,)))]
        if (simple := _OPPOSITE.get(keyword)) is not None:
            return simple(value)
        match keyword:
            case "type":
                return _other_types(value, beyond)
            case "multipleOf":
                return [Case(NUMBER, numbers=Numbers(beyond=(beyond,)))]
            case "pattern":
                pattern_case(value, node.pointer)
                return [Case(STRING, strings=Strings(beyond=((value, beyond),)))]
            case "format":
                return [Case(STRING, strings=Strings(beyond=((None, beyond),)))]
            case "const":
                return other_than(self._document, node, value, ("const",))
            case "enum":
                cases = [ANY]
                for index, one in enumerate(value):
                    others = other_than(self._document, node, one, ("enum", index))
                    cases = meet(cases, others, node)
                return cases
            case "properties":
                return self._other_objects(node, no_objects)
            case "prefixItems":
                return self._other_arrays(node, no_arrays)
            case "required":
                return [Case(OBJECT, objects=without(name).objects) for name in value]
            case "uniqueItems":
                return no_arrays if value else []
            case "contains":
                if "contains" not in schema or schema.get("minContains") == 0:
                    return no_arrays if "maxContains" in schema and "contains" in schema else []
                if "maxContains" in schema or schema.get("minContains", 1) != 1:
                    return no_arrays
                return [Case(ARRAY, arrays=Arrays(items=self._unwanted(node, keyword)))]
            case "propertyNames":
                wanted = self._wanted(node, keyword)
                if wanted == NOTHING:
                    return [Case(OBJECT, objects=Objects(least=1, bounded_at=node.pointer))]
                return [] if wanted == ANYTHING else no_objects
            case "dependentRequired":
                return [
                    Case(OBJECT, objects=Objects({other: NOTHING}, required=(name,)))
                    for name, others in value.items()
                    for other in others
                    if other != name
                ]
            case "dependentSchemas":
                cases = []
                for name in value:
                    child = self._document.child(node, keyword, name)
                    there = [Case(OBJECT, objects=Objects(required=(name,)))]
                    cases += meet(there, self._expand(child, False), node)
                return cases
            case "allOf":
                return [
                    case
                    for child in self._children(node, keyword)
                    for case in self._expand(child, False)
                ]
            case "anyOf":
                cases = [ANY]
                for child in self._children(node, keyword):
                    cases = meet(cases, self._expand(child, False), node)
                return cases
            case "oneOf":
                return self._none_or_several(node)
            case "not":
                return self._expand(self._document.child(node, keyword), True)
            case "if":
                return self._broken_if(node)
            case "$ref" | "$dynamicRef":
                return self._expand(self._document.target(node, keyword), False)
        raise AssertionError(keyword)

    def _other_objects(self, node: Node, beyond: list[Case]) -> list[Case]:
        schema = node.value
        assert isinstance(schema, dict)
        cases = []
        for name in schema.get("properties", {}):
            unwanted = self._unwanted(node, "properties", name)
            if unwanted != NOTHING:
                cases.append(Case(OBJECT, objects=Objects({name: unwanted}, required=(name,))))
        patterns = schema.get("patternProperties", {})
        rest = [self._wanted(node, "patternProperties", pattern) for pattern in patterns]
        if "additionalProperties" in schema:
            rest.append(self._wanted(node, "additionalProperties"))
        return cases if all(wanted == ANYTHING for wanted in rest) else [*cases, *beyond]

    def _other_arrays(self, node: Node, beyond: list[Case]) -> list[Case]:
        schema = node.value
        assert isinstance(schema, dict)
        length = len(schema.get("prefixItems", ()))
        cases = []
        for index in range(length):
            unwanted = self._unwanted(node, "prefixItems", index)
            if unwanted != NOTHING:
                prefix = (ANYTHING,) * index + (unwanted,)
                cases.append(Case(ARRAY, arrays=Arrays(prefix, least=index + 1)))
        if "items" in schema:
            wanted = self._wanted(node, "items")
            if wanted == NOTHING:
                cases.append(Case(ARRAY, arrays=Arrays(least=length + 1)))
            elif wanted != ANYTHING:
                cases += beyond
        return cases

    def _none_or_several(self, node: Node) -> list[Case]:
        children = self._children(node, "oneOf")
        none = [ANY]
        for child in children:
            none = meet(none, self._expand(child, False), node)
        several: list[Case] = []
        for index, child in enumerate(children):
            for other in children[:index]:
                pair = meet(self._expand(child, True), self._expand(other, True), node)
                several = limited([*several, *pair], node)
        return [*none, *several]

    def _broken_if(self, node: Node) -> list[Case]:
        assert isinstance(node.value, dict)
        if "if" not in node.value:
            return []
        condition = self._document.child(node, "if")
        cases: list[Case] = []
        for keyword, holds in (("then", True), ("else", False)):
            if keyword in node.value:
                broken = self._expand(self._document.child(node, keyword), False)
                cases += meet(self._expand(condition, holds), broken, node)
        return cases


def _other_types(value: str | list[str], beyond: Beyond) -> list[Case]:
    held = types_case(value)
    types = EVERY - held.types
    cases = [Case(types)] if types else []
    if "number" in held.types and held.numbers.integer:
        cases.append(Case(NUMBER, numbers=Numbers(fraction=beyond)))
    return cases


_OPPOSITE: dict[str, Callable[[Any], list[Case]]] = {
    "minimum": lambda value: [Case(NUMBER, numbers=Numbers(below=value))],
    "maximum": lambda value: [Case(NUMBER, numbers=Numbers(above=value))],
    "exclusiveMinimum": lambda value: [Case(NUMBER, numbers=Numbers(maximum=value))],
    "exclusiveMaximum": lambda value: [Case(NUMBER, numbers=Numbers(minimum=value))],
    "minLength": lambda value: [Case(STRING, strings=Strings(most=int(value) - 1))] * (value > 0),
    "maxLength": lambda value: [Case(STRING, strings=Strings(least=int(value) + 1))],
    "minItems": lambda value: [Case(ARRAY, arrays=Arrays(most=int(value) - 1))] * (value > 0),
    "maxItems": lambda value: [Case(ARRAY, arrays=Arrays(least=int(value) + 1))],
    "minProperties": lambda value: (
        [Case(OBJECT, objects=Objects(most=int(value) - 1))] * (value > 0)
    ),
    "maxProperties": lambda value: [Case(OBJECT, objects=Objects(least=int(value) + 1))],
}

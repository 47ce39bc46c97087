"""The cases in which the keywords of a schema hold."""

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
from tgi_async.grammar.schema.leaves import constant_cases, format_case, pattern_case
from tgi_async.grammar.schema.side import LATER, OBJECT, Side, leading, limited, meet, without


class Holds(Side):
    """Raises UnsupportedSchema."""

    def cases(self, node: Node, track: bool) -> list[Case]:
        schema = node.value
        assert isinstance(schema, dict)
        track = track or not LATER.isdisjoint(schema)
        cases = [ANY]
        for keyword in leading(node):
            cases = meet(cases, self._keyword(node, keyword, track), node)
        for keyword in schema:
            if keyword in LATER:
                cases = self._unevaluated(node, keyword, cases)
        return cases

    def _keyword(self, node: Node, keyword: str, track: bool) -> list[Case]:
        schema = node.value
        assert isinstance(schema, dict)
        value: Any = schema.get(keyword)
        if (simple := _SIMPLE.get(keyword)) is not None:
            return [simple(value)]
        match keyword:
            case "type":
                return [types_case(value)]
            case "pattern":
                return [pattern_case(value, node.pointer)]
            case "format":
                return [format_case(value, node.pointer)]
            case "const":
                return constant_cases(self._document, node, [value], ("const",))
            case "enum":
                return constant_cases(self._document, node, value, ("enum", None))
            case "properties":
                return [Case(objects=self._objects(node))]
            case "prefixItems":
                return [Case(arrays=self._arrays(node))]
            case "required":
                return [Case(objects=Objects(required=tuple(value)))]
            case "minProperties" | "maxProperties":
                least, most = _bounds(keyword, value)
                at = node.pointer
                return [Case(objects=Objects(least=least, most=most, bounded_at=at))]
            case "uniqueItems":
                why = "items are not compared with each other"
                beyond = Beyond(keyword, node.pointer, why)
                return [Case(arrays=Arrays(beyond=(beyond,)))] if value else [ANY]
            case "contains":
                return self._contains(node, track)
            case "propertyNames":
                return self._names(node)
            case "dependentRequired":
                return self._dependent_required(node)
            case "dependentSchemas":
                return self._dependent_schemas(node, track)
            case "allOf":
                cases = [ANY]
                for child in self._children(node, keyword):
                    cases = meet(cases, self._expand(child, True, track), node)
                return cases
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

    def _objects(self, node: Node) -> Objects:
        schema = node.value
        assert isinstance(schema, dict)
        for pattern in schema.get("patternProperties", {}):
            pattern_case(pattern, f"{node.pointer}/patternProperties")
        return Objects(
            {name: self._wanted(node, "properties", name) for name in schema.get("properties", {})},
            {
                pattern: self._wanted(node, "patternProperties", pattern)
                for pattern in schema.get("patternProperties", {})
            },
            self._wanted(node, "additionalProperties")
            if "additionalProperties" in schema
            else ANYTHING,
            names_seen=tuple(schema.get("properties", {})),
            patterns_seen=tuple(schema.get("patternProperties", {})),
            all_seen="additionalProperties" in schema,
        )

    def _arrays(self, node: Node) -> Arrays:
        schema = node.value
        assert isinstance(schema, dict)
        length = len(schema.get("prefixItems", ()))
        return Arrays(
            tuple(self._wanted(node, "prefixItems", index) for index in range(length)),
            self._wanted(node, "items") if "items" in schema else ANYTHING,
            evaluated=None if "items" in schema else length,
        )

    def _contains(self, node: Node, track: bool) -> list[Case]:
        schema = node.value
        assert isinstance(schema, dict)
        if "contains" not in schema:
            return [ANY]  # the other two mean nothing then
        wanted = self._wanted(node, "contains")
        least, most = int(schema.get("minContains", 1)), schema.get("maxContains")
        if track:
            why = "together with `unevaluatedItems` it is not followed"
            return [Case(arrays=Arrays(beyond=(Beyond("contains", node.pointer, why),)))]
        if wanted == ANYTHING:
            return [Case(arrays=Arrays(least=least, most=None if most is None else int(most)))]
        if wanted == NOTHING:
            return [Case(arrays=Arrays(most=-1))] if least else [ANY]
        if most is None and least == 0:
            return [ANY]
        if most == 0 and least == 0:
            return [Case(arrays=Arrays(items=self._unwanted(node, "contains")))]
        why = "items are not counted by what they are"
        return [Case(arrays=Arrays(beyond=(Beyond("contains", node.pointer, why),)))]

    def _names(self, node: Node) -> list[Case]:
        """`propertyNames`: the names that strings may be become properties or patterns."""
        child = self._document.child(node, "propertyNames")
        cases = [case.strings for case in self._expand(child, True) if "string" in case.types]
        if Strings() in cases:
            return [ANY]
        names: list[str] = []
        patterns: list[str] = []
        for strings in cases:
            if strings.among is not None:
                names += strings.among
                continue
            bounded = strings.least > 0 or strings.most is not None
            several = len(strings.patterns) + bounded > 1
            if several or strings.formats or strings.none_of or strings.beyond:
                why = "only with names, one pattern or bounds of the length"
                raise unsupported("propertyNames", node.pointer, why)
            if bounded:
                most = "" if strings.most is None else strings.most
                patterns.append(f"^(?s:.{{{strings.least},{most}}})$")
            patterns += [pattern for pattern, _ in strings.patterns]
        objects = Objects(
            dict.fromkeys(names, ANYTHING), dict.fromkeys(patterns, ANYTHING), NOTHING
        )
        return [Case(objects=objects)]

    def _dependent_required(self, node: Node) -> list[Case]:
        assert isinstance(node.value, dict)
        cases = [ANY]
        for name, others in node.value["dependentRequired"].items():
            if others:
                there = Case(OBJECT, objects=Objects(required=(name, *others)))
                cases = meet(cases, [without(name), there], node)
        return cases

    def _dependent_schemas(self, node: Node, track: bool) -> list[Case]:
        assert isinstance(node.value, dict)
        cases = [ANY]
        for name in node.value["dependentSchemas"]:
            child = self._document.child(node, "dependentSchemas", name)
            there = [Case(OBJECT, objects=Objects(required=(name,)))]
            met = meet(there, self._expand(child, True, track), node)
            cases = meet(cases, [without(name), *met], node)
        return cases

    def _any(self, node: Node, track: bool) -> list[Case]:
        cases: list[Case] = []
        for child in self._children(node, "anyOf"):
            option = self._expand(child, True, track)
            together = meet(cases, option, node) if track else []
            cases = limited([*cases, *option, *together], node)
        return cases

    def _one(self, node: Node, track: bool) -> list[Case]:
        children = self._children(node, "oneOf")
        options = [self._expand(child, True, track) for child in children]
        cases: list[Case] = []
        for index, option in enumerate(options):
            for other, child in enumerate(children):
                if other != index and self._overlap(option, options[other], node):
                    option = meet(option, self._expand(child, False), node)
            cases = limited([*cases, *option], node)
        return cases

    def _overlap(self, left: list[Case], right: list[Case], node: Node) -> bool:
        return any(not self._hopeless(case) for case in meet(left, right, node))

    def _if(self, node: Node, track: bool) -> list[Case]:
        assert isinstance(node.value, dict)
        if "if" not in node.value or not (track or node.value.keys() & {"then", "else"}):
            return [ANY]
        condition = self._document.child(node, "if")
        cases: list[Case] = []
        for keyword, holds in (("then", True), ("else", False)):
            branch = self._expand(condition, holds, track and holds)
            if keyword in node.value:
                child = self._document.child(node, keyword)
                branch = meet(branch, self._expand(child, True, track), node)
            cases += branch
        return limited(cases, node)

    def _unevaluated(self, node: Node, keyword: str, cases: list[Case]) -> list[Case]:
        wanted = self._wanted(node, keyword)
        met: list[Case] = []
        for case in cases:
            if keyword == "unevaluatedProperties":
                seen = case.objects
                rest = Objects(
                    dict.fromkeys(seen.names_seen, ANYTHING),
                    dict.fromkeys(seen.patterns_seen, ANYTHING),
                    ANYTHING if seen.all_seen else wanted,
                    all_seen=True,
                )
                met += meet([case], [Case(objects=rest)], node)
            else:
                count = case.arrays.evaluated
                items = Arrays((ANYTHING,) * (count or 0), wanted, evaluated=None)
                met += [case] if count is None else meet([case], [Case(arrays=items)], node)
        return met


def types_case(value: str | list[str]) -> Case:
    names = {value} if isinstance(value, str) else set(value)
    integer = "integer" in names and "number" not in names
    types = frozenset("number" if name == "integer" else name for name in names)
    return Case(types, numbers=Numbers(integer=integer))


def _bounds(keyword: str, value: float) -> tuple[int, int | None]:
    return (int(value), None) if keyword.startswith("min") else (0, int(value))


_SIMPLE: dict[str, Callable[[Any], Case]] = {
    "minimum": lambda value: Case(numbers=Numbers(minimum=value)),
    "maximum": lambda value: Case(numbers=Numbers(maximum=value)),
    "exclusiveMinimum": lambda value: Case(numbers=Numbers(above=value)),
    "exclusiveMaximum": lambda value: Case(numbers=Numbers(below=value)),
    "multipleOf": lambda value: Case(numbers=Numbers(multiples=(value,))),
    "minLength": lambda value: Case(strings=Strings(least=int(value))),
    "maxLength": lambda value: Case(strings=Strings(most=int(value))),
    "minItems": lambda value: Case(arrays=Arrays(least=int(value))),
    "maxItems": lambda value: Case(arrays=Arrays(most=int(value))),
}

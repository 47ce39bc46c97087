"""The JSON texts, on one line, that a schema accepts.

The schema is one of those that `tgi_async.grammar.schema` emits. What is not known of it raises
TooComplex.
"""

from __future__ import annotations

import json
from fractions import Fraction
from math import gcd
from typing import Any

from workers.constraints.expressions import Expressions
from workers.constraints.literals import LiteralMachine
from workers.constraints.nodes import Expression, TooComplex
from workers.constraints.numbers import Bounds, NumberMachine
from workers.constraints.patterns import matching, searching
from workers.constraints.strings import JsonStrings

KNOWN = frozenset(
    {
        "type",
        "enum",
        "const",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "prefixItems",
        "items",
        "minItems",
        "maxItems",
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "minProperties",
        "maxProperties",
        "anyOf",
        "allOf",
        "$ref",
        "$defs",
    }
)
MANY = 50
"""Number of constants above which there is no expression for each."""
TYPES = ("null", "boolean", "number", "string", "array", "object")
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
INTEGER = r"-?(?:0|[1-9][0-9]*)"
STRING = r'"(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt]|\\u[0-9a-fA-F]{4})*"'
_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def value(expressions: Expressions, schema: Any) -> Expression:
    """Return the texts of the values. Call `Expressions.settle` afterwards."""
    values = _Values(expressions)
    if isinstance(schema, dict):
        for name, one in schema.get("$defs", {}).items():
            expressions.define(values.named(f"#/$defs/{name}"), values.of(one))
    return values.of(schema)


class _Values:
    def __init__(self, expressions: Expressions) -> None:
        self._x = expressions
        self._first_node = len(expressions)
        self._any: Expression | None = None
        self._comma = expressions.text(b", ")
        self._strings = JsonStrings(expressions)
        self._matching: dict[str, Expression] = {}

    def named(self, reference: str) -> str:
        """Return the unique name of a definition, as other schemas of the grammar have their
        own."""
        return f"{self._first_node} {reference}"

    def of(self, schema: Any) -> Expression:
        if schema is True or schema == {}:
            return self._anything()
        if schema is False:
            return self._x.nothing
        if not isinstance(schema, dict) or not schema.keys() <= KNOWN:
            raise TooComplex
        if "$ref" in schema:
            return self._x.reference(self.named(schema["$ref"]))
        if "anyOf" in schema:
            return self._x.choice([self.of(one) for one in schema["anyOf"]])
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            demands = self._strings.demands(schema)
            if not demands and len(values) > MANY:
                return LiteralMachine(self._x, map(_json, values)).start
            found = self._x.choice([self._literal(one) for one in values])
            if not demands:
                return found
            strings = self._strings.quote(self._x.both(demands))
            others = self._x.choice(
                [self._literal(one) for one in values if not isinstance(one, str)]
            )
            return self._x.choice([self._x.both([found, strings]), others])
        kinds = schema.get("type", TYPES)
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return self._x.choice([self._of_kind(kind, schema) for kind in kinds])

    def _matches(self, pattern: str) -> Expression:
        known = self._matching.get(pattern)
        if known is None:
            known = self._matching[pattern] = matching(self._x, pattern)
        return known

    def _literal(self, one: Any) -> Expression:
        return self._x.text(_json(one))

    def _anything(self) -> Expression:
        if self._any is None:
            self._any = self._x.reference(self.named(""))
            self._x.define(
                self.named(""), self._x.choice([self._of_kind(kind, {}) for kind in TYPES])
            )
        return self._any

    def _of_kind(self, kind: str, schema: dict[str, Any]) -> Expression:
        match kind:
            case "null":
                return self._x.text(b"null")
            case "boolean":
                return self._x.choice([self._x.text(b"true"), self._x.text(b"false")])
            case "number" | "integer":
                return self._number(kind == "integer", schema)
            case "string":
                return self._strings.of(schema)
            case "array":
                return self._array(schema)
            case "object":
                return self._object(schema)
        raise TooComplex

    def _number(self, integer: bool, schema: dict[str, Any]) -> Expression:
        steps = [one["multipleOf"] for one in schema.get("allOf", ()) if "multipleOf" in one]
        if "multipleOf" in schema:
            steps.append(schema["multipleOf"])
        if not steps and not any(name in schema for name in _NUMERIC):
            return self._matches(INTEGER if integer else NUMBER)
        step: Fraction | None = None
        for one in steps:
            step = _fraction(one) if step is None else _common_multiple(step, _fraction(one))
        low, above = _bound(schema, "minimum", "exclusiveMinimum", max)
        high, below = _bound(schema, "maximum", "exclusiveMaximum", min)
        bounds = Bounds(integer, low, high, above, below, step)
        return self._x.machine(NumberMachine(self._x, bounds), "")

    # Arrays and objects

    def _array(self, schema: dict[str, Any]) -> Expression:
        x = self._x
        prefix = [self.of(one) for one in schema.get("prefixItems", ())]
        items = self.of(schema.get("items", True))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        length = len(prefix)
        if most is not None and most <= length:
            prefix, more = prefix[:most], x.empty
        else:
            n_more = None if most is None else most - length
            more = x.repeated(x.then(self._comma, items), max(0, least - length), n_more)
        if not prefix:
            if items is x.nothing or most == 0:
                inner = x.nothing if least else x.empty
            else:
                n_more = None if most is None else most - 1
                further = x.repeated(x.then(self._comma, items), max(0, least - 1), n_more)
                inner = x.then(items, further)
                inner = inner if least else x.optional(inner)
        else:
            inner = more
            for index in range(len(prefix) - 1, -1, -1):
                if index:
                    inner = x.sequence([self._comma, prefix[index], inner])
                else:
                    inner = x.then(prefix[index], inner)
                if index >= least:
                    inner = x.optional(inner)
        return x.sequence([x.text(b"["), inner, x.text(b"]")])

    def _object(self, schema: dict[str, Any]) -> Expression:
        x = self._x
        properties = dict(schema.get("properties", {}))
        required = set(schema.get("required", ()))
        entries = []
        for name in (*properties, *(name for name in required if name not in properties)):
            node = self.of(properties.get(name, True))
            entry = x.sequence([self._literal(name), x.text(b": "), node])
            if name in required or entry is not x.nothing:
                entries.append((entry, name in required))
        further = self._further(schema, list(properties))
        least = schema.get("minProperties", 0) - len(required)
        most = schema.get("maxProperties")
        most = None if most is None else most - len(required)
        if all(needed for _, needed in entries):
            node = self._further_entries(further, bool(entries), max(0, least), most)
            inner = self._in_order(entries, node, node if not entries else None)
        elif least <= 0 and most is None:
            inner = self._in_order(
                entries,
                self._further_entries(further, True, 0, None),
                self._further_entries(further, False, 0, None),
            )
        elif further is x.nothing:
            inner = self._counted(entries, max(0, least), most)
        else:
            raise TooComplex
        return x.sequence([x.text(b"{"), inner, x.text(b"}")])

    def _further(self, schema: dict[str, Any], names: list[str]) -> Expression:
        """Return one property that has no schema under its own name."""
        x = self._x
        colon = x.text(b": ")
        taken = [self._literal(name) for name in names]
        options = []
        for pattern, one in schema.get("patternProperties", {}).items():
            matched = self._strings.quote(searching(x, pattern))
            name = x.both([matched, x.other(x.choice(taken))]) if taken else matched
            options.append(x.sequence([name, colon, self.of(one)]))
            taken.append(matched)
        additional = self.of(schema.get("additionalProperties", True))
        string = self._matches(STRING)
        name = x.both([string, x.other(x.choice(taken))]) if taken else string
        options.append(x.sequence([name, colon, additional]))
        return x.choice(options)

    def _further_entries(
        self, entry: Expression, behind: bool, least: int, most: int | None
    ) -> Expression:
        """Return so many properties, after others or not."""
        x = self._x
        again = x.then(self._comma, entry)
        if behind:
            return x.repeated(again, least, most)
        if most == 0:
            return x.empty
        rest = x.repeated(again, max(0, least - 1), None if most is None else most - 1)
        some = x.then(entry, rest)
        return some if least else x.optional(some)

    def _in_order(
        self, entries: list[tuple[Expression, bool]], behind: Expression, alone: Expression | None
    ) -> Expression:
        """Return the entries in order, required or not. `alone`: what is there without any."""
        x = self._x
        after, first = behind, x.nothing if alone is None else alone
        for entry, needed in reversed(entries):
            whole = x.then(entry, after)
            first = whole if needed else x.choice([whole, first])
            later = x.then(self._comma, whole)
            after = later if needed else x.choice([later, after])
            x.steps(after)  # from the end on, so that the recursion is not deep
        return first

    def _counted(
        self, entries: list[tuple[Expression, bool]], least: int, most: int | None
    ) -> Expression:
        """Return the entries, with so many of the optional ones."""
        x = self._x
        n = sum(not needed for _, needed in entries)
        most = n if most is None else min(n, most)
        if n * most > 2_000:
            raise TooComplex
        after = [[x.empty if least <= k <= most else x.nothing] * 2 for k in range(n + 1)]
        for entry, needed in reversed(entries):
            made = []
            for k in range(n + 1):
                pair = []
                for behind in (0, 1):
                    begin = x.then(self._comma, entry) if behind else entry
                    if needed:
                        pair.append(x.then(begin, after[k][1]))
                    else:
                        more = after[k + 1][1] if k < n else x.nothing
                        pair.append(x.choice([x.then(begin, more), after[k][behind]]))
                made.append(pair)
            after = made
        return after[0][0]


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return text.replace("\x7f", "\\u007f").encode()


def _fraction(number: float) -> Fraction:
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def _common_multiple(left: Fraction, right: Fraction) -> Fraction:
    scale = left.denominator * right.denominator
    a, b = int(left * scale), int(right * scale)
    return Fraction(a * b // gcd(a, b), scale)


def _bound(
    schema: dict[str, Any], inclusive: str, exclusive: str, stricter: Any
) -> tuple[Fraction | None, bool]:
    """Return a bound, and whether it is exclusive."""
    found = [
        _fraction(schema[name]) for name in (inclusive, exclusive) if schema.get(name) is not None
    ]
    if not found:
        return None, False
    bound: Fraction = stricter(found)
    return bound, exclusive in schema and _fraction(schema[exclusive]) == bound

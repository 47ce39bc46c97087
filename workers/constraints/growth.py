"""How much longer the shortest completion of a text may become by one token.

A text is completed in time only if the completion begins while it still fits, so the worst single
token must be known: one that opens an optional property, an item, a branch. What it then requires
is written out here as the shortest text of that part, and counted in tokens by the caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from tgi_async.grammar.grammar import (
    Choice,
    ContextFree,
    Grammar,
    Json,
    Prose,
    Regex,
    Repeat,
    Sequence,
    Special,
    Tag,
    Tagged,
    Text,
)

MOST = 4096
"""Most characters of a required text; what recurs without end is cut here."""

OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "if", "then", "else")
"""Keywords whose values are schemas: by name, in a list, or one."""

_PARSER = import_module("re._parser")
"""Python's own parser of regular expressions, which has no types."""


def openings(grammar: Grammar) -> Iterator[str]:
    """Return the shortest texts of all optional parts, roughly."""
    if isinstance(grammar, Json):
        yield from _Schema(grammar.schema).openings()
    elif isinstance(grammar, Regex):
        yield "x" * _widest(grammar.pattern)
    elif isinstance(grammar, Prose):
        yield grammar.begin + grammar.until
    elif isinstance(grammar, Sequence):
        for part in grammar.parts:
            yield from openings(part)
    elif isinstance(grammar, Choice):
        for option in grammar.options:
            yield _least(option)
            yield from openings(option)
    elif isinstance(grammar, Repeat):
        yield grammar.separator + _least(grammar.part)
        yield from openings(grammar.part)
    elif isinstance(grammar, ContextFree):
        yield max(grammar.literals, key=len, default="")
    elif isinstance(grammar, Tagged):
        for tag in grammar.tags:
            yield _tag(tag)
            yield from openings(tag.content)


def _least(grammar: Grammar) -> str:
    """Return a short text of the grammar, roughly."""
    if isinstance(grammar, Json):
        return _Schema(grammar.schema).least(grammar.schema)
    if isinstance(grammar, Regex):
        return "x" * _least_width(grammar.pattern)
    if isinstance(grammar, Text):
        return grammar.text
    if isinstance(grammar, Special):
        return grammar.token
    if isinstance(grammar, Prose):
        return grammar.begin + grammar.until
    if isinstance(grammar, Sequence):
        return "".join(map(_least, grammar.parts))
    if isinstance(grammar, Choice):
        return min(map(_least, grammar.options), key=len)
    if isinstance(grammar, Repeat):
        return grammar.separator.join([_least(grammar.part)] * grammar.least)[:MOST]
    if isinstance(grammar, Tagged):
        return min(map(_tag, grammar.tags), key=len) if grammar.begins else ""
    return ""  # a client's own grammar is not analysed


def _tag(tag: Tag) -> str:
    return tag.begin + _least(tag.content) + tag.end


class _Schema:
    """A JSON Schema that was checked."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, str] = {}

    def openings(self) -> Iterator[str]:
        """Yield the openings of every subschema; a required one costs nothing to list."""
        waiting: list[Any] = [self._root]
        while waiting:
            schema = waiting.pop()
            yield from self._own(schema)
            if isinstance(schema, dict):
                for key, value in schema.items():
                    if key in OF_NAMES and isinstance(value, dict):
                        waiting += value.values()
                    elif key in LISTS and isinstance(value, list):
                        waiting += value
                    elif key in SINGLE:
                        waiting.append(value)

    def _own(self, schema: Any) -> Iterator[str]:
        """Yield those of a schema itself, apart from its subschemas."""
        if not isinstance(schema, dict):
            if schema is True:
                yield '{"x": 0}'
            return
        properties = schema.get("properties")
        if isinstance(properties, dict):
            required = schema.get("required")
            for name, value in properties.items():
                if not isinstance(required, list) or name not in required:
                    yield f", {json.dumps(name)}: {self.least(value)}"
        more = schema.get("additionalProperties", True)
        if more is not False and _may_be(schema, "object"):
            yield f', "x": {self.least(more)}'
        if _may_be(schema, "array"):
            yield f", {self.least(schema.get('items', True))}"
        for key in LISTS:
            options = schema.get(key)
            for option in options if isinstance(options, list) else []:
                yield f", {self.least(option)}"
        for option in schema.get("enum") or []:
            yield json.dumps(option)
        patterns = schema.get("patternProperties")
        for value in patterns.values() if isinstance(patterns, dict) else []:
            yield f', "x": {self.least(value)}'
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            yield "x" * _widest(pattern)

    def least(self, schema: Any) -> str:
        """Return a short JSON text that the schema accepts, roughly, and at most `MOST` long."""
        known = self._known.get(id(schema))
        if known is None:
            self._known[id(schema)] = "x" * MOST  # what requires itself never ends
            known = self._known[id(schema)] = self._written(schema)[:MOST]
        return known

    def _written(self, schema: Any) -> str:
        if not isinstance(schema, dict):
            return "0"
        if "const" in schema:
            return json.dumps(schema["const"])
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return min(map(json.dumps, schema["enum"]), key=len)
        if "$ref" in schema:
            return self.least(self._resolved(str(schema["$ref"])))
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return min(map(self.least, schema[key]), key=len)
        if isinstance(schema.get("allOf"), list) and schema["allOf"]:
            return "".join(map(self.least, schema["allOf"]))
        kinds = schema.get("type")
        options = kinds if isinstance(kinds, list) else [kinds]
        return min((self._of_kind(kind, schema) for kind in options), key=len, default="0")

    def _of_kind(self, kind: object, schema: dict[str, Any]) -> str:
        if kind == "object" or (kind is None and "properties" in schema):
            properties = schema.get("properties") or {}
            parts = (
                f"{json.dumps(name)}: {self.least(properties.get(name, True))}"
                for name in schema.get("required") or []
            )
            return "{" + ", ".join(parts) + "}"
        if kind == "array" or (kind is None and "items" in schema):
            first = schema.get("prefixItems") or []
            n = min(int(schema.get("minItems") or 0), MOST)
            every = [*first[:n], *[schema.get("items", True)] * (n - len(first[:n]))]
            return "[" + ", ".join(map(self.least, every)) + "]"
        if kind == "string" or (kind is None and "pattern" in schema):
            n = min(int(schema.get("minLength") or 0), MOST)
            n = max(n, 36 if "format" in schema else 0)
            n = max(n, _least_width(str(schema["pattern"])) if "pattern" in schema else 0)
            return json.dumps("x" * n)
        if kind in ("integer", "number"):
            return json.dumps(schema.get("minimum", schema.get("exclusiveMinimum", 0)))
        return {"null": "null", "boolean": "true"}.get(str(kind), "0")

    def _resolved(self, reference: str) -> Any:
        found = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict):
                found = found.get(part)
        return found


def _may_be(schema: dict[str, Any], kind: str) -> bool:
    """Return whether a schema by itself, apart from what it refers to, may accept a value of this
    kind."""
    kinds = schema.get("type")
    if kinds is not None:
        return kind in (kinds if isinstance(kinds, list) else [kinds])
    return not any(key in schema for key in ("enum", "const", "$ref", "anyOf", "oneOf", "allOf"))


def _least_width(pattern: str) -> int:
    """Return the length of the shortest match, as far as Python's own syntax has it."""
    try:
        return min(int(_PARSER.parse(pattern).getwidth()[0]), MOST)
    except (re.error, OverflowError, RecursionError):
        return min(len(pattern), MOST)


def _widest(pattern: str) -> int:
    """Return the largest minimum width of any part that may be repeated or chosen."""
    try:
        tree = _PARSER.parse(pattern)
    except (re.error, OverflowError, RecursionError):
        return min(len(pattern), MOST)
    widest = 0
    waiting: list[Any] = [tree]
    while waiting:
        item = waiting.pop()
        if hasattr(item, "getwidth"):
            if item is not tree:
                widest = max(widest, int(item.getwidth()[0]))
            waiting += list(item)
        elif isinstance(item, list | tuple):
            waiting += item
    return min(widest, MOST)

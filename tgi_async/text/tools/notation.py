"""Notations of a call's arguments other than a JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.reader import Reader, Reading

MAX_NAME = 256
"""Most characters of a parameter's name."""
MAX_REFERENCES = 8
"""Most `$ref` in a row that are followed to find a type."""
SCALARS = ("string", "integer", "number", "boolean", "null")
KINDS = (*SCALARS, "array", "object")

ANNOTATIONS = {"type", "title", "description", "default", "examples", "$comment", "deprecated"}
DEFINITIONS = ("$defs", "definitions")


class NotForced(Exception):
    """Arguments of this schema cannot be forced in this notation; the message says why."""


class Terms(Protocol):
    """Splits a text into terms, with its special tokens apart."""

    def __call__(self, text: str) -> list[Grammar]: ...


Emit = Callable[[str], None]
"""Takes a piece of the arguments, as JSON."""


class Notation(Protocol):
    """How arguments are written."""

    @property
    def first(self) -> str:
        """Characters that arguments, or what ends them, may begin with."""
        ...

    @property
    def literals(self) -> tuple[str, ...]:
        """All texts of the notation that special tokens may be in."""
        ...

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return arguments as the model would write them."""
        ...

    def begins(self, reader: Reader) -> Reading[bool]:
        """Return whether arguments begin here, or end at once; nothing is consumed."""
        ...

    def read(self, reader: Reader, schema: Any, emit: Emit) -> Reading[None]:
        """Read arguments up to their end, and its mark. Emit them as a JSON object.

        It is whole unless the text was truncated. What is no argument ends them too, and is left.
        """
        ...

    def forced(self, schema: dict[str, Any], terms: Terms) -> Grammar:
        """Return a grammar of arguments that follow the schema. Raises NotForced."""
        ...

    def any(self, terms: Terms) -> Grammar:
        """Return a grammar of any arguments."""
        ...


def properties_of(schema: Any) -> list[tuple[str, Any, bool]]:
    """Return name, schema and whether it is required, of each property. Raises NotForced."""
    if not isinstance(schema, dict):
        return []
    allowed = {*ANNOTATIONS, "properties", "required", "additionalProperties", *DEFINITIONS}
    if unknown := schema.keys() - allowed:
        raise NotForced(f"`{min(unknown)}` of the parameters")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise NotForced("`properties` or `required` that is none")
    return [(name, given, name in required) for name, given in properties.items()]


def as_json(schema: Any, root: Mapping[str, Any]) -> Grammar:
    """Return a value that follows a schema inside of `root`, written in JSON."""
    inner = schema if isinstance(schema, dict) else {}
    return terms.Json({**inner, **{key: root[key] for key in DEFINITIONS if key in root}})


def resolved(schema: Any, root: Any) -> Any:
    """Return the schema itself, or the target of its `$ref`."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found.get(step) if isinstance(found, dict) else None
        schema = found
    return None


def branches_of(schema: Any, root: Any, depth: int = 0) -> list[Any]:
    """Return the schemas of which a value follows one, apart: those of `anyOf` and of a list of
    types."""
    schema = resolved(schema, root)
    if not isinstance(schema, dict) or depth > MAX_REFERENCES:
        return [schema]
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and not schema.keys() - {key, *ANNOTATIONS}:
            return [branch for option in options for branch in branches_of(option, root, depth + 1)]
    types = schema.get("type")
    if isinstance(types, list) and all(isinstance(one, str) for one in types):
        return [{**schema, "type": one} for one in types]
    return [schema]


def types_of(schema: Any, root: Any, depth: int = 0) -> set[str]:
    """Return the types of a value. A schema without any is taken for a string's."""
    schema = resolved(schema, root)
    if not isinstance(schema, dict) or depth > MAX_REFERENCES:
        return {"string"}
    types = schema.get("type")
    if isinstance(types, str):
        return {types}
    if isinstance(types, list):
        return set(map(str, types))
    if isinstance(values := schema.get("enum"), list):
        return set(map(type_of, values))
    if "const" in schema:
        return {type_of(schema["const"])}
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            return set().union(*(types_of(option, root, depth + 1) for option in options))
    return {"string"}


def type_of(value: Any) -> str:
    """Return the type of a JSON value."""
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "array"


def is_one_of(value: Any, types: Collection[str]) -> bool:
    """Return whether a JSON value has one of these types."""
    found = type_of(value)
    return found in types or (found == "integer" and "number" in types)


def property_of(schema: Any, name: str) -> Any:
    """Return the schema of a property, as far as it is known."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties.get(name) if isinstance(properties, dict) else None


def one_of(options: list[Grammar]) -> Grammar:
    """Return a choice, or its only option."""
    return options[0] if len(options) == 1 else terms.Choice(options)


def in_string(text: str) -> str:
    """Return a text as it is within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def text_up_to(pattern: str, end: Sequence[Grammar]) -> list[Grammar]:
    """Return a text that matches `pattern`, with `end` after it.

    An engine gives a pattern all that it can match, so what `end` begins with is part of it.
    """
    first, *rest = end
    if not isinstance(first, terms.Text):
        return [terms.Regex(pattern), first, *rest]
    if not rest and pattern == ANY_TEXT:
        return [terms.Prose(first.text)]
    return [terms.Regex(pattern + escaped(first.text)), *rest]


ANY_TEXT = "(?s:.*)"

_SYNTAX = re.compile(r"([\\.+*?()|\[\]{}^$/&~#-])")


def escaped(text: str) -> str:
    """Return a pattern for exactly this text."""
    return _SYNTAX.sub(r"\\\1", text).replace("\n", r"\n")

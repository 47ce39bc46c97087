"""The keywords of Draft 2020-12: the allowed values, and which hold subschemas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tgi_async.grammar.schema.errors import InvalidSchema, UnsupportedSchema

TYPES = ("null", "boolean", "number", "string", "array", "object")
"""The types; `integer` is a kind of number."""

ANNOTATIONS = frozenset(
    {
        "$comment",
        "title",
        "description",
        "default",
        "deprecated",
        "readOnly",
        "writeOnly",
        "examples",
        "example",  # OpenAPI's
        "discriminator",  # OpenAPI's: a hint, beside a `oneOf` that says the same
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    }
)
"""Keywords that describe a value and do not constrain it."""

IDENTIFIERS = frozenset({"$schema", "$id", "$anchor", "$dynamicAnchor"})

DEFINITIONS = frozenset({"$defs", "definitions"})

SCHEMA = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "items",
        "contains",
        "additionalProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
"""Keywords that hold one schema."""

SCHEMA_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SCHEMA_MAP = frozenset({"properties", "patternProperties", "dependentSchemas"}) | DEFINITIONS

MAX_COUNT = 100_000
"""Most characters; see `emit` for the bounds of what an engine has to unroll."""


def check_value(keyword: str, value: Any, pointer: str, name: str) -> None:
    """Check the value of a keyword, which is called `name` where it was given.

    Raises InvalidSchema or UnsupportedSchema.
    """
    if wanted := problem(keyword, value):
        raise InvalidSchema(f"`{name}` at {pointer} must be {wanted}")
    if keyword in LEAST and value > MAX_COUNT:
        raise UnsupportedSchema(
            f"`{keyword}` at {pointer} must be at most {MAX_COUNT}. Given: {_shown(value)}"
        )


def problem(keyword: str, value: Any) -> str:
    """Return what the value of a keyword must be, if it is not; subschemas are not checked."""
    if keyword in SCHEMA:
        return "" if isinstance(value, dict | bool) else "a schema"
    if keyword in SCHEMA_LIST:
        ok = isinstance(value, list) and (value or keyword == "prefixItems")
        return "" if ok else "a list of schemas"
    if keyword in SCHEMA_MAP:
        return "" if isinstance(value, dict) else "an object of schemas"
    check = CHECKS.get(keyword)
    return "" if check is None else check(value)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:20]}..."


def is_number(value: Any) -> bool:
    """Return whether a value is a JSON number: `true` is not, though in Python it is."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _number(value: Any) -> str:
    return "" if is_number(value) else "a number"


def _positive(value: Any) -> str:
    return "" if is_number(value) and value > 0 else "a number greater than 0"


def _count(value: Any) -> str:
    return "" if is_number(value) and value >= 0 and value == int(value) else "an integer >= 0"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a string"


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _names(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return "a list of strings"
    return "" if len(set(value)) == len(value) else "a list of different strings"


def _map_of_names(value: Any) -> str:
    ok = isinstance(value, dict) and not any(_names(names) for names in value.values())
    return "" if ok else "an object of lists of different strings"


def _types(value: Any) -> str:
    given = value if isinstance(value, list) else [value]
    known = all(isinstance(name, str) and (name in TYPES or name == "integer") for name in given)
    if not given or not known or len(set(given)) != len(given):
        return f"one of {', '.join(TYPES)}, integer, or a list of different ones"
    return ""


def _list(value: Any) -> str:
    return "" if isinstance(value, list) else "a list"


COUNTS = frozenset(
    {
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minContains",
        "maxContains",
    }
)
LEAST = frozenset({"minLength", "minItems", "minProperties", "minContains"})
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})

CHECKS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(COUNTS, _count),
    **dict.fromkeys(NUMBERS, _number),
    "multipleOf": _positive,
    **dict.fromkeys(("pattern", "format", "$ref", "$dynamicRef"), _text),
    **dict.fromkeys(IDENTIFIERS, _text),
    "uniqueItems": _flag,
    "required": _names,
    "dependentRequired": _map_of_names,
    "type": _types,
    "enum": _list,
}

KNOWN = frozenset(CHECKS) | SCHEMA | SCHEMA_LIST | SCHEMA_MAP | ANNOTATIONS | {"const"}

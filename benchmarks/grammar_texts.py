"""Typical grammars, and hostile ones."""

from __future__ import annotations

import random
from typing import Any

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
}
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "status": {"enum": ["open", "paid", "shipped", "returned"]},
        "when": {"type": "string", "format": "date-time"},
        "lines": {
            "type": "array",
            "minItems": 1,
            "maxItems": 20,
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                    "title": {"type": "string", "minLength": 3, "maxLength": 60},
                    "count": {"type": "integer", "minimum": 1, "maximum": 99},
                    "price": {"type": "number", "minimum": 0},
                    "note": {"type": ["string", "null"]},
                },
                "required": ["sku", "title", "count", "price"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["id", "status", "when", "lines"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Any] = {"person": PERSON, "order": ORDER, "tree": TREE, "any": {}}
REGEXES = {
    "any text": r"(.|\n){4000}",
    "no line break": r"[^\n]{4000}",
    "lower case": "[a-z ]{4000}",
}
"""Regular expressions that cannot end within some sixty tokens."""
UNENDING = {name: pattern.replace("{4000}", "{40000}") for name, pattern in REGEXES.items()}
"""Regular expressions that cannot end within a few hundred tokens, runs of spaces included."""
KINDS = ("string", "integer", "number", "boolean")


def wide_schema(draw: random.Random, n: int = 100) -> dict[str, Any]:
    """Return an object of `n` required properties that was never requested before."""
    names = [f"{draw.choice('abcdefgh')}_{draw.randrange(10**9)}" for _ in range(n)]
    properties = {name: {"type": KINDS[i % len(KINDS)]} for i, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names}


def benign(draw: random.Random) -> dict[str, Any]:
    """Return a grammar for `/generate`, new each time."""
    schema = wide_schema(draw, draw.randint(2, 12))
    return {"type": "json", "value": schema}


def hostile(draw: random.Random) -> dict[str, Any]:
    """Return a grammar that is meant to take long, to take much memory, or to kill a process; new
    each time."""
    n = draw.randrange(10**6)
    kind = draw.randrange(12)
    if kind == 0:
        return {"type": "regex", "value": f"(a{{1,1000}}){{1,{1000 + n}}}"}
    if kind == 1:
        return {"type": "regex", "value": f"(.{{1,500}}x){{1,500}}{n}"}
    if kind == 2:
        return {"type": "regex", "value": f"(a|b)*a(a|b){{{20 + n % 30}}}{n}"}
    if kind == 3:
        return {"type": "regex", "value": "(" * (500 + n % 500) + "a" + ")*" * (500 + n % 500)}
    if kind == 4:
        return {"type": "regex", "value": f"(x+x+)+y{n}|(.*)*(.*)*z"}
    if kind == 5:
        depth = 200 + n % 2000
        nested = '{"type": "array", "items": ' * depth + "true" + "}" * depth
        return {"type": "json", "value": nested}
    if kind == 6:
        return {"type": "json", "value": {"type": "string", "maxLength": 10**6 + n}}
    if kind == 7:
        options = [
            {
                "type": "object",
                "properties": {f"p{i}_{j}_{n}": {"type": "string"} for j in range(20)},
            }
            for i in range(300)
        ]
        return {"type": "json", "value": {"anyOf": options}}
    if kind == 8:
        return {"type": "json", "value": {"enum": [f"word {i} {n}" for i in range(20_000)]}}
    if kind == 9:
        around = {"$ref": "#/$defs/a"}
        return {"type": "json", "value": {"$defs": {"a": {"anyOf": [around, around]}}, **around}}
    if kind == 10:
        return {"type": "json", "value": {"type": "string", "pattern": f"^(\\ud800|(a*)*b){n}$"}}
    return {"type": "regex", "value": f"\\p{{L}}{{1,{n}}}\\p{{N}}+[\\u0000-\\uffff]{{{n}}}"}

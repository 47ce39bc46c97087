"""Find and remove `uniqueItems` and `minProperties`, which engines do not support."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import GrammarError


def contexts(grammar: Grammar) -> list[tuple[bytes, Any]]:
    """Return the schemas that compare items or count names, each with the text right before its
    value.

    Raises GrammarError where that text is not known.
    """
    return [
        (_known(before), schema) for before, schema in _values(grammar, "") if _compares(schema)
    ]


def _known(before: str | None) -> bytes:
    if before is None:
        raise GrammarError("`uniqueItems` and `minProperties` need a known text before the value")
    return before.encode()


def _compares(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_compares, schema))
    if not isinstance(schema, dict):
        return False
    if "uniqueItems" in schema or schema.get("minProperties", 0) > 1:
        return True
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "$defs"):
            if any(map(_compares, value.values())):
                return True
        elif keyword != "enum" and _compares(value):
            return True
    return False


def _values(term: Grammar, before: str | None) -> Iterator[tuple[str | None, Any]]:
    match term:
        case terms.Json(schema):
            yield before, schema
        case terms.Sequence(parts):
            for part in parts:
                yield from _values(part, before)
                match part:
                    case terms.Text(text):
                        before = text
                    case terms.Prose(until):
                        before = until
                    case _:
                        before = None
        case terms.Choice(options):
            for option in options:
                yield from _values(option, before)
        case terms.Repeat(part):
            yield from _values(part, before)
            yield from _values(part, term.separator or None)
        case terms.Tagged(tags):
            for tag in tags:
                yield from _values(tag.content, tag.begin)


def inlined(schema: Any, prefix: str) -> dict[str, Any]:
    """Return the schema with its shared definitions inlined."""
    written = json.dumps(schema).replace('"#/$defs/', f'"#/$defs/{prefix}')
    found: dict[str, Any] = json.loads(written)
    found["$defs"] = {f"{prefix}{name}": one for name, one in found.get("$defs", {}).items()}
    return found


def without_unique(schema: Any) -> Any:
    """Return the schema without `uniqueItems`, which engines do not support."""
    if isinstance(schema, list):
        return [without_unique(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    written = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "$defs"):
            written[keyword] = {name: without_unique(one) for name, one in value.items()}
        elif keyword == "enum":
            written[keyword] = value
        elif keyword != "uniqueItems":
            written[keyword] = without_unique(value)
    return written

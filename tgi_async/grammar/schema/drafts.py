"""The drafts of JSON Schema: detect a document's draft, and translate it to 2020-12.

`translate` rewrites one schema object, and leaves the schemas inside it as they are: the document
translates each of them when it gets there, so that a place keeps the pointer that its author knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tgi_async.grammar.schema.keywords import (
    ANNOTATIONS,
    DEFINITIONS,
    SCHEMA,
    SCHEMA_LIST,
    SCHEMA_MAP,
    problem,
)

LATEST = 2020
DRAFTS = {
    "json-schema.org/draft-03/schema": 3,
    "json-schema.org/draft-04/schema": 4,
    "json-schema.org/draft-06/schema": 6,
    "json-schema.org/draft-07/schema": 7,
    "json-schema.org/draft/2019-09/schema": 2019,
    "json-schema.org/draft/2020-12/schema": LATEST,
}
"""Drafts by the URI of `$schema`."""

SINCE = {
    **dict.fromkeys(
        ("allOf", "anyOf", "oneOf", "not", "multipleOf", "minProperties", "maxProperties"), 4
    ),
    **dict.fromkeys(("const", "contains", "propertyNames"), 6),
    **dict.fromkeys(("if", "then", "else"), 7),
    **dict.fromkeys(
        (
            "$defs",
            "dependentRequired",
            "dependentSchemas",
            "unevaluatedItems",
            "unevaluatedProperties",
        ),
        2019,
    ),
}
"""The first draft of keywords that only exclude values. In an older draft they have no meaning, and
are followed all the same: the text is valid either way."""

WITHOUT_MEANING = {
    **dict.fromkeys(("minContains", "maxContains", "$anchor"), 2019),
    **dict.fromkeys(("prefixItems", "$dynamicRef", "$dynamicAnchor"), 2020),
}
"""The first draft of keywords that change what others mean; in an older one they are ignored."""

RENAMED_FORMATS = {"ip-address": "ipv4", "host-name": "hostname"}
"""Draft 3's formats with other names."""
MOST_GUESSED = 20_000
"""Most parts of a schema that are searched for a guess."""


def draft_of(schema: Any) -> int | None:
    """Return the draft that `$schema` names, the latest for an unknown one; None if there is
    none."""
    name = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(name, str) or not name:
        return None
    return DRAFTS.get(name.strip().rstrip("#").partition("://")[2], LATEST)


def guess(schema: Any) -> int:
    """Guess the draft of a document that names none, from the keywords that it uses."""
    signs = set[int]()
    for place in _places(schema):
        signs |= _signs(place)
    if any(sign >= 2019 for sign in signs):
        return LATEST if 2020 in signs or not signs & {3, 4, 7} else 2019
    return min(signs, default=LATEST)


def _places(schema: Any) -> Iterator[dict[str, Any]]:
    waiting, seen = [schema], 0
    while waiting and seen < MOST_GUESSED:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        seen += 1
        yield one
        for keyword, value in one.items():
            if keyword in SCHEMA_MAP or keyword == "dependencies":
                waiting.extend(value.values() if isinstance(value, dict) else ())
            elif keyword in SCHEMA_LIST or keyword in SCHEMA or keyword in ("extends", "type"):
                waiting.extend(value if isinstance(value, list) else [value])


def _signs(schema: dict[str, Any]) -> set[int]:
    """Yield the drafts that a keyword of this schema points to; 7 stands for all before 2019-09."""
    signs = set[int]()
    if isinstance(schema.get("required"), bool) or not schema.keys().isdisjoint(
        {"divisibleBy", "extends", "disallow"}
    ):
        signs.add(3)
    names = schema.get("type")
    if names == "any" or (
        isinstance(names, list) and any(one == "any" or isinstance(one, dict) for one in names)
    ):
        signs.add(3)
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(keyword), bool):
            signs.add(4)
    if isinstance(schema.get("id"), str) and "$id" not in schema:
        signs.add(4)
    if isinstance(schema.get("items"), list) or "dependencies" in schema:
        signs.add(7)
    if "prefixItems" in schema or "$dynamicRef" in schema:
        signs.add(2020)
    if any(SINCE.get(keyword) == 2019 for keyword in schema) or "$recursiveRef" in schema:
        signs.add(2019)
    return signs


def translate(schema: dict[str, Any], draft: int) -> dict[str, Any]:
    """Return the same schema in the keywords of 2020-12; subschemas are still of `draft`.

    What is not as its draft wants it stays for the document to report.
    """
    if draft < 2019 and isinstance(schema.get("$ref"), str):
        kept = DEFINITIONS | {"$schema", "$ref"}
        return {
            keyword: value
            for keyword, value in schema.items()
            if keyword in kept and _is_of(keyword, value, draft)
        }
    if draft >= LATEST and "dependencies" not in schema:
        return schema
    written = {keyword: value for keyword, value in schema.items() if _is_of(keyword, value, draft)}
    if draft <= 7:
        _identify(schema, written, "id" if draft <= 4 else "$id")
    if draft <= 4:
        _exclude(written, "minimum", "exclusiveMinimum")
        _exclude(written, "maximum", "exclusiveMaximum")
    if draft < LATEST:
        _list_items(schema, written)
    if "$recursiveRef" in written and draft == 2019:
        written["$dynamicRef"] = written.pop("$recursiveRef")
        if written.pop("$recursiveAnchor", False) is True:
            written["$dynamicAnchor"] = ""
    if "dependencies" in written:
        _split_dependencies(written)
    if draft == 3:
        _modernize(schema, written)
    return written


def _is_of(keyword: str, value: Any, draft: int) -> bool:
    """Return whether a keyword is kept."""
    if WITHOUT_MEANING.get(keyword, 0) > draft:
        return False
    if draft <= 4 and keyword == "$id":
        return False
    if SINCE.get(keyword, 0) <= draft:
        return True
    if keyword == "$defs" and isinstance(value, dict):
        return all(isinstance(one, dict | bool) for one in value.values())
    return not problem(keyword, value)


def _identify(schema: dict[str, Any], written: dict[str, Any], keyword: str) -> None:
    name = schema.get(keyword)
    if not isinstance(name, str):
        written.pop(keyword, None) if keyword == "id" else None
        return
    del written[keyword]
    name, _, fragment = name.partition("#")
    if name:
        written["$id"] = name
    if fragment:
        written["$anchor"] = fragment


def _exclude(written: dict[str, Any], bound: str, keyword: str) -> None:
    """Translate a bound that a flag beside it makes exclusive."""
    if isinstance(written.get(keyword), bool):
        excluded = written.pop(keyword)
        if excluded and bound in written:
            written[keyword] = written.pop(bound)


def _list_items(schema: dict[str, Any], written: dict[str, Any]) -> None:
    rest = written.pop("additionalItems", None)
    if isinstance(schema.get("items"), list):
        written["prefixItems"] = written.pop("items")
        if rest is not None:
            written["items"] = rest


def _split_dependencies(written: dict[str, Any]) -> None:
    given = written.pop("dependencies")
    if not isinstance(given, dict):
        written["dependencies"] = given
        return
    names = {name: one for name, one in given.items() if isinstance(one, list)}
    names |= {name: [one] for name, one in given.items() if isinstance(one, str)}
    schemas = {name: one for name, one in given.items() if name not in names}
    if names:
        written["dependentRequired"] = names | written.get("dependentRequired", {})
    if schemas:
        written["dependentSchemas"] = schemas | written.get("dependentSchemas", {})


def _modernize(schema: dict[str, Any], written: dict[str, Any]) -> None:
    """Translate draft 3."""
    if isinstance(written.get("required"), bool):
        del written["required"]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        required = [
            name
            for name, one in properties.items()
            if isinstance(one, dict) and one.get("required") is True and "$ref" not in one
        ]
        if required:
            written["required"] = required + [
                name for name in written.get("required", []) if name not in required
            ]
    if "divisibleBy" in written:
        written["multipleOf"] = written.pop("divisibleBy")
    if isinstance(written.get("format"), str):
        written["format"] = RENAMED_FORMATS.get(written["format"], written["format"])
    more: list[Any] = []
    if "extends" in written:
        extended = written.pop("extends")
        more += extended if isinstance(extended, list) else [extended]
    if "disallow" in written:
        more.append({"not": _any_of(written.pop("disallow"))})
    types = written.get("type")
    if types == "any" or (
        isinstance(types, list) and any(one == "any" or isinstance(one, dict) for one in types)
    ):
        more.append(_any_of(written.pop("type")))
    if more:
        written["allOf"] = [*written.get("allOf", []), *more]


def _any_of(types: Any) -> Any:
    """Translate draft 3's `type`, which may list schemas beside names, and in which `any` is a
    type."""
    options = types if isinstance(types, list) else [types]
    if "any" in options:
        return {}
    names = [one for one in options if not isinstance(one, dict)]
    return {
        "anyOf": [
            *([{"type": names}] if names else []),
            *(one for one in options if isinstance(one, dict)),
        ]
    }


OLDER_NAMES = {
    "$dynamicRef": ("$recursiveRef",),
    "allOf": ("extends", "disallow", "type"),
    "dependentRequired": ("dependencies",),
    "dependentSchemas": ("dependencies",),
    "multipleOf": ("divisibleBy",),
    "prefixItems": ("items",),
}


def name_in(given: dict[str, Any], keyword: str) -> str:
    """Return the name of a translated keyword in the schema as it was given."""
    if keyword == "items" and isinstance(given.get("items"), list) and "additionalItems" in given:
        return "additionalItems"
    if keyword in given:
        return keyword
    return next((name for name in OLDER_NAMES.get(keyword, ()) if name in given), keyword)


OLDER = frozenset(
    {
        "$recursiveAnchor",
        "$recursiveRef",
        "$vocabulary",
        "additionalItems",
        "dependencies",
        "disallow",
        "divisibleBy",
        "extends",
        "id",
    }
)
"""Keywords of older drafts that 2020-12 does not have. Left in a schema, they mean nothing
there."""

TOOLS = frozenset(
    {
        "additionalPropertiesDescription",
        "allowTrailingCommas",
        "contentMediaEncoding",
        "defaultSnippets",
        "deprecationMessage",
        "doNotSuggest",
        "enumDescriptions",
        "enumNames",
        "errorMessage",
        "externalDocs",
        "fileMatch",
        "javaType",
        "links",
        "markdownDescription",
        "markdownEnumDescriptions",
        "media",
        "name",
        "options",
        "propertyOrder",
        "readonly",
        "self",
        "suggestSortText",
        "tags",
        "tsType",
        "version",
        "xml",
        "$generated",
        "$id",
    }
)
"""Annotations of editors, code and form generators, OpenAPI and hyper-schemas."""

QUIET = OLDER | ANNOTATIONS | TOOLS
"""Keywords that are ignored without a report, beside all that begin with `x-` or `_`."""

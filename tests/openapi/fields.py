"""Every path, field and value that an OpenAPI document names, as one text each."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

Json = dict[str, Any]


def names(document: Json) -> set[str]:
    """E.g. `POST /generate takes .parameters.top_k` and `POST / 200 application/json []`."""
    return set(_operations(document))


def _operations(document: Json) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            yield name
            taken = operation.get("requestBody", {}).get("content", {})
            for one in taken.values():
                for field in _fields(document, one["schema"]):
                    yield f"{name} takes {field}"
            for status, response in operation["responses"].items():
                yield f"{name} {status}"
                for media, one in response.get("content", {}).items():
                    yield f"{name} {status} {media}"
                    for field in _fields(document, one["schema"]):
                        yield f"{name} {status} {media} {field}"


def _fields(document: Json, schema: Json, place: str = "") -> Iterator[str]:
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    for word in ("allOf", "anyOf", "oneOf"):
        for one in schema.get(word, ()):
            yield from _fields(document, one, place)
    for value in schema.get("enum", ()):
        yield f"{place}={value}"
    if "items" in schema:
        yield from _fields(document, schema["items"], f"{place}[]")
    for field, one in schema.get("properties", {}).items():
        yield f"{place}.{field}"
        yield from _fields(document, one, f"{place}.{field}")


def highest(lacking: Set[str]) -> set[str]:
    """Without those that are inside another one."""
    return {name for name in lacking if not any(_inside(name, other) for other in lacking)}


def _inside(name: str, other: str) -> bool:
    return name.startswith(other) and name[len(other) : len(other) + 1] in (" ", ".", "[", "=")

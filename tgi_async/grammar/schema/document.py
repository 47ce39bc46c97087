"""One schema as a document: its places, what they are called, and where references lead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from tgi_async.grammar.schema.errors import InvalidSchema, UnsupportedSchema, unsupported
from tgi_async.grammar.schema.keywords import (
    DRAFTS,
    SCHEMA,
    SCHEMA_LIST,
    SCHEMA_MAP,
    check_value,
)

MAX_DEPTH = 64
"""Schemas inside each other, and likewise values of `enum` and `const`."""
MAX_PLACES = 20_000
"""Schemas in a document."""


class Node:
    """A schema at a place of a document. Compared by identity: each place has one."""

    __slots__ = ("base", "pointer", "value")

    def __init__(self, value: dict[str, Any] | bool, pointer: str, base: str) -> None:
        self.value = value
        self.pointer = pointer
        self.base = base
        """The URI that a relative reference in it starts from."""


class Document:
    """Raises InvalidSchema for what is not a schema of Draft 2020-12, wherever in it."""

    def __init__(self, schema: Any) -> None:
        self._nodes: dict[str, Node] = {}
        self._resources: dict[str, tuple[Any, str]] = {}
        """Value and pointer by URI."""
        self._anchors: dict[str, tuple[Any, str, str]] = {}
        """Value, pointer and base by URI with fragment."""
        self._resources[""] = (schema, "#")
        self._walk(schema, "#", "", 0)
        base = self._base_in("", schema)
        self.root = self._node(schema, "#", base)

    def child(self, parent: Node, *path: str | int) -> Node:
        """The schema at `path` inside `parent`."""
        value: Any = parent.value
        pointer = parent.pointer
        for step in path:
            value = value[step]
            pointer = join(pointer, step)
        return self._node(value, pointer, self._base_in(parent.base, value))

    def constant(self, parent: Node, value: Any, *path: str | int) -> Node:
        """A schema that only `value` satisfies, which is at `path` inside `parent`."""
        pointer = parent.pointer
        for step in path:
            pointer = join(pointer, step)
        key = f"={pointer}"
        if key not in self._nodes:
            self._nodes[key] = Node({"const": value}, pointer, parent.base)
        return self._nodes[key]

    def target(self, node: Node, keyword: str = "$ref") -> Node:
        """Where the reference of `node` leads. Raises UnsupportedSchema."""
        assert isinstance(node.value, dict)
        reference: str = node.value[keyword]
        if keyword == "$dynamicRef" and len(self._resources) > 2:
            raise unsupported(keyword, node.pointer, "there is more than one `$id`")
        # A fragment alone stays in its document, also where that has a name without a path (URN).
        absolute = node.base + reference if reference[:1] == "#" else urljoin(node.base, reference)
        uri, fragment = urldefrag(absolute)
        if fragment and not fragment.startswith("/"):
            found = self._anchors.get(f"{uri}#{fragment}")
            if found is not None:
                return self._node(found[0], found[1], found[2])
        resource = self._resources.get(uri)
        if resource is None or (fragment and not fragment.startswith("/")):
            raise UnsupportedSchema(
                f"`{keyword}` at {node.pointer} leads to {_shown(reference)}, which is not in the "
                "schema"
            )
        value, pointer = resource
        base = self._base_in(uri, value)
        for step in fragment.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(name)] if isinstance(value, list) else value[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InvalidSchema(
                    f"`{keyword}` at {node.pointer} leads to {_shown(reference)}, where nothing is"
                ) from None
            pointer = join(pointer, name)
            base = self._base_in(base, value)
        if not isinstance(value, dict | bool):
            raise InvalidSchema(
                f"`{keyword}` at {node.pointer} leads to {_shown(reference)}, which is no schema"
            )
        if pointer not in self._nodes:
            self._walk(value, pointer, base, 0)  # under a keyword that holds no schemas
        return self._node(value, pointer, base)

    def _node(self, value: Any, pointer: str, base: str) -> Node:
        node = self._nodes.get(pointer)
        if node is None or node.value is not value:
            node = self._nodes[pointer] = Node(value, pointer, base)
        return node

    def _base_in(self, base: str, value: Any) -> str:
        if isinstance(value, dict) and isinstance(value.get("$id"), str):
            return str(urldefrag(urljoin(base, value["$id"]))[0])
        return base

    def _walk(self, schema: Any, pointer: str, base: str, depth: int) -> None:
        """Check a schema and all in it; take down its names."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise InvalidSchema(f"a schema must be an object or a boolean, at {pointer}")
        if depth > MAX_DEPTH:
            raise UnsupportedSchema(
                f"the schema is nested too deep at {pointer}: at most {MAX_DEPTH} levels"
            )
        base = self._base_in(base, schema)
        self._node(schema, pointer, base)
        if len(self._nodes) > MAX_PLACES:
            raise UnsupportedSchema(f"the schema has more than {MAX_PLACES} parts")
        for keyword, value in schema.items():
            check_value(keyword, value, pointer)
        self._name(schema, pointer, base)
        for value, at in _inner(schema, pointer):
            self._walk(value, at, base, depth + 1)

    def _name(self, schema: dict[str, Any], pointer: str, base: str) -> None:
        if "$id" in schema:
            self._resources.setdefault(base, (schema, pointer))
        for keyword in ("$anchor", "$dynamicAnchor"):
            if keyword in schema:
                self._anchors.setdefault(f"{base}#{schema[keyword]}", (schema, pointer, base))
        draft = schema.get("$schema", "")
        if draft and draft.rstrip("#").partition("://")[2] not in DRAFTS:
            raise unsupported("$schema", pointer, "only Draft 2020-12 and the three before it are")


def _inner(schema: dict[str, Any], pointer: str) -> Iterator[tuple[Any, str]]:
    """The schemas directly inside one. Raises InvalidSchema."""
    for keyword, value in schema.items():
        at = join(pointer, keyword)
        if keyword in SCHEMA:
            yield value, at
        elif keyword in SCHEMA_LIST:
            if not isinstance(value, list) or (not value and keyword != "prefixItems"):
                raise InvalidSchema(f"`{keyword}` at {pointer} must be a list of schemas")
            for index, item in enumerate(value):
                yield item, join(at, index)
        elif keyword in SCHEMA_MAP:
            if not isinstance(value, dict):
                raise InvalidSchema(f"`{keyword}` at {pointer} must be an object of schemas")
            for name, item in value.items():
                yield item, join(at, name)


def join(pointer: str, step: str | int) -> str:
    """A JSON pointer one step further."""
    return f"{pointer}/{str(step).replace('~', '~0').replace('/', '~1')}"


def _shown(reference: str) -> str:
    return repr(reference if len(reference) <= 100 else reference[:100] + "...")

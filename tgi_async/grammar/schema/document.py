"""A schema as a document: its subschemas, their URIs, and the targets of references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import msgspec

from tgi_async.grammar.schema.drafts import LATEST, QUIET, draft_of, guess, name_in, translate
from tgi_async.grammar.schema.errors import InvalidSchema, UnsupportedSchema, unsupported
from tgi_async.grammar.schema.formats import is_unknown_format
from tgi_async.grammar.schema.keywords import (
    ANNOTATIONS,
    KNOWN,
    SCHEMA,
    SCHEMA_LIST,
    SCHEMA_MAP,
    check_value,
)

MAX_DEPTH = 64
"""Most nested schemas, and nested values of `enum` and `const`."""
MAX_PLACES = 20_000
"""Most schemas in a document."""


NAMES = frozenset({"$id", "$anchor", "$dynamicAnchor", "$dynamicRef"})
"""A key that distinguishes a schema from others."""
MAX_IGNORED = 16
"""Most ignored keywords that are reported."""


class SchemaNode:
    """A schema at a place of a document. Compared by identity: each place has one."""

    __slots__ = ("base", "draft", "pointer", "value")

    def __init__(
        self, value: dict[str, Any] | bool, pointer: str, base: str, draft: int = LATEST
    ) -> None:
        self.value = value
        """The value in the keywords of 2020-12; subschemas are as they were given."""
        self.pointer = pointer
        self.base = base
        """The base URI of relative references."""
        self.draft = draft


class Document:
    """A checked schema. Raises InvalidSchema for anything in it that is not a schema of its
    draft."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._nodes: dict[int, SchemaNode] = {}
        """By the identity of a schema as it was given. Equal schemas have one."""
        self._alike: dict[tuple[object, ...], SchemaNode] = {}
        """By everything that has a meaning in a schema."""
        self._constants: dict[bytes, SchemaNode] = {}
        self._resources: dict[str, tuple[Any, str]] = {}
        """Value and pointer by URI."""
        self._anchors: dict[str, SchemaNode] = {}
        """By URI with fragment."""
        self.ignored: dict[str, None] = {}
        """Keywords and formats that were probably meant as constraints, and are ignored."""
        self._resources[""] = (schema, "#")
        draft = draft_of(schema)
        self._walk(schema, "#", "", guess(schema) if draft is None else draft, 0)
        self.root = self._node(schema, "#", "", LATEST)

    def child(self, parent: SchemaNode, *path: str | int) -> SchemaNode:
        """Return the schema at `path` inside `parent`."""
        value: Any = parent.value
        pointer = parent.pointer
        for step in path:
            value = value[step]
            pointer = join(pointer, step)
        return self._node(value, pointer, parent.base, parent.draft)

    def constant(self, parent: SchemaNode, value: Any, *path: str | int) -> SchemaNode:
        """Return a schema that only `value` satisfies, which is at `path` inside `parent`."""
        pointer = parent.pointer
        for step in path:
            pointer = join(pointer, step)
        written = msgspec.json.encode(value)
        if written not in self._constants:
            self._constants[written] = SchemaNode({"const": value}, pointer, parent.base)
        return self._constants[written]

    def target(self, node: SchemaNode, keyword: str = "$ref") -> SchemaNode:
        """Return the target of the reference of `node`. Raises UnsupportedSchema."""
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
                return found
        resource = self._resources.get(uri)
        if resource is None or (fragment and not fragment.startswith("/")):
            raise UnsupportedSchema(
                f"`{keyword}` at {node.pointer} leads to {_shown(reference)}, which is not in the "
                "schema"
            )
        value, pointer = resource
        base, draft = uri, node.draft
        for step in fragment.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if (known := self._nodes.get(id(value))) is not None:
                base, draft = known.base, known.draft
            try:
                value = value[int(name)] if isinstance(value, list) else value[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise InvalidSchema(
                    f"`{keyword}` at {node.pointer} leads to {_shown(reference)}, where nothing is"
                ) from None
            pointer = join(pointer, name)
        if not isinstance(value, dict | bool):
            raise InvalidSchema(
                f"`{keyword}` at {node.pointer} leads to {_shown(reference)}, which is no schema"
            )
        if id(value) not in self._nodes:
            self._walk(value, pointer, base, draft, 0)  # under a keyword that holds no schemas
        return self._node(value, pointer, base, draft)

    def _node(self, value: Any, pointer: str, base: str, draft: int) -> SchemaNode:
        node = self._nodes.get(id(value)) if isinstance(value, dict) else None
        return node or SchemaNode(value, pointer, base, draft)

    def _walk(self, schema: Any, pointer: str, base: str, draft: int, depth: int) -> None:
        """Check a schema and all its subschemas; record their names."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise InvalidSchema(f"a schema must be an object or a boolean, at {pointer}")
        if depth > MAX_DEPTH:
            raise UnsupportedSchema(
                f"the schema is nested too deep at {pointer}: at most {MAX_DEPTH} levels"
            )
        if id(schema) in self._nodes:
            return
        if "$id" in schema or "id" in schema:
            draft = draft_of(schema) or draft
        value = translate(schema, draft)
        if isinstance(value.get("$id"), str):
            base = str(urldefrag(urljoin(base, value["$id"]))[0])
            self._resources.setdefault(base, (schema, pointer))
        node = self._nodes[id(schema)] = SchemaNode(value, pointer, base, draft)
        if len(self._nodes) > MAX_PLACES:
            raise UnsupportedSchema(f"the schema has more than {MAX_PLACES} parts")
        for keyword, given in value.items():
            check_value(keyword, given, pointer, name_in(schema, keyword))
            self._note(keyword, given)
        for keyword in ("$anchor", "$dynamicAnchor"):
            if keyword in value:
                self._anchors.setdefault(f"{base}#{value[keyword]}", node)
        for keyword, *steps, inner in _inner(value):
            at = join(pointer, name_in(schema, keyword))
            for step in steps:
                at = join(at, step)
            self._walk(inner, at, base, draft, depth + 1)
        if not NAMES & value.keys():
            node = self._alike.setdefault((base, draft, *self._meaning(value)), node)
            self._nodes[id(schema)] = node

    def _meaning(self, value: dict[str, Any]) -> Iterator[object]:
        """Return a key that is equal for schemas that mean the same, once those inside are
        known."""
        for keyword, given in value.items():
            if keyword in KNOWN and keyword not in ANNOTATIONS:
                yield keyword
                if keyword in SCHEMA:
                    yield self._alike_to(given)
                elif keyword in SCHEMA_LIST:
                    yield tuple(map(self._alike_to, given))
                elif keyword in SCHEMA_MAP:
                    yield tuple((name, self._alike_to(one)) for name, one in given.items())
                else:
                    yield msgspec.json.encode(given)

    def _alike_to(self, schema: Any) -> object:
        return schema if isinstance(schema, bool) else self._nodes[id(schema)]

    def _note(self, keyword: str, value: Any) -> None:
        """Record what is ignored."""
        if len(self.ignored) == MAX_IGNORED:
            return
        if keyword == "format" and is_unknown_format(value):
            self.ignored[f"format:{value}"] = None
        elif (
            keyword not in KNOWN
            and keyword not in QUIET
            and keyword[:2] != "x-"
            and keyword[:1] not in ("_", "@")
        ):
            self.ignored[keyword] = None


def _inner(schema: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each direct subschema, and that schema."""
    for keyword, value in schema.items():
        if keyword in SCHEMA:
            yield keyword, value
        elif keyword in SCHEMA_LIST:
            for index, item in enumerate(value):
                yield keyword, index, item
        elif keyword in SCHEMA_MAP:
            for name, item in value.items():
                yield keyword, name, item


def join(pointer: str, step: str | int) -> str:
    """Extend a JSON pointer by one step."""
    return f"{pointer}/{str(step).replace('~', '~0').replace('/', '~1')}"


def _shown(reference: str) -> str:
    return repr(reference if len(reference) <= 100 else reference[:100] + "...")

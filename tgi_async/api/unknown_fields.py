"""The fields of a body that its schema does not have.

A typed decoder passes over them. The body is walked once more, along the types: objects of the
schema are opened, everything else is skipped as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
from msgspec import Raw, inspect

from tgi_async.api.body import decode_json

MOST_FIELDS = 200
"""Most fields of one body that are reported."""
MOST_OBJECTS = 2000
"""Most objects of one body that are searched, which takes some 10 ms. Later ones are skipped."""

MOST_BYTES = 64
"""Most bytes of a value that is kept."""

Unknown = dict[str, bytes]
"""Values, as JSON, by path such as `messages.content.foo`; a path has no places in lists. A long
value is empty here. A field that is null asks for nothing, and is left out."""

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_LIST = msgspec.json.Decoder(list[Raw])


def unknown_fields(raw: bytes, body_type: Any) -> Unknown:
    """Return the unknown fields of a body that was decoded to this type.

    Raises:
        BodyRefused: a name is not UTF-8, which a typed decoder does not notice.
    """
    shape = _shape_of(body_type)
    walk = _Walk()
    if shape is not None:
        walk.look_at(Raw(raw.lstrip()), shape, "")
    return walk.found


@dataclass(slots=True)
class _Shape:
    """What a value may be: one of several objects, a list, or anything that is not searched."""

    objects: dict[str | None, dict[str, _Shape | None]] = field(default_factory=dict)
    """Fields by name, of each object by its tag."""
    tag_field: str | None = None
    items: _Shape | None = None

    def fields_of(self, value: dict[str, Raw]) -> dict[str, _Shape | None]:
        """Return the fields that this object may have."""
        tag = None
        if self.tag_field is not None and self.tag_field in value:
            tag = msgspec.json.decode(value[self.tag_field], type=str)
        return self.objects.get(tag) or next(iter(self.objects.values()))


class _Walk:
    """A walk through one body."""

    def __init__(self) -> None:
        self.found: Unknown = {}
        self._left = MOST_OBJECTS

    def look_at(self, raw: Raw, shape: _Shape, path: str) -> None:
        """Record the unknown fields of a value. Its path ends with a dot, or is empty."""
        begins = bytes(memoryview(raw)[:1])
        if begins == b"[" and shape.items is not None:
            for item in decode_json(_LIST, raw)[: self._left]:
                self.look_at(item, shape.items, path)
        elif begins == b"{" and shape.objects and self._left > 0:
            self._left -= 1
            value = decode_json(_OBJECT, raw)
            fields = shape.fields_of(value)
            for name, part in value.items():
                if name not in fields:
                    self._take(f"{path}{name}", part)
                elif (inner := fields[name]) is not None:
                    self.look_at(part, inner, f"{path}{name}.")

    def _take(self, path: str, value: Raw) -> None:
        # A copy, as a Raw would keep the whole body.
        kept = bytes(value) if len(memoryview(value)) <= MOST_BYTES else b""
        if len(self.found) < MOST_FIELDS and kept != b"null":
            self.found.setdefault(path, kept)


@cache
def _shape_of(body_type: Any) -> _Shape | None:
    return _made(inspect.type_info(body_type))


def _made(info: inspect.Type) -> _Shape | None:
    """Return None for a type without objects."""
    shape = _Shape()
    waiting = [info]
    while waiting:
        match one := waiting.pop():
            case inspect.UnionType():
                waiting += one.types
            case inspect.Metadata():
                waiting.append(one.type)
            case inspect.ListType():
                shape.items = _made(one.item_type)
            case inspect.StructType() | inspect.TypedDictType():
                fields: dict[str, _Shape | None] = {
                    part.encode_name: _made(part.type) for part in one.fields
                }
                tag = None
                if isinstance(one, inspect.StructType) and one.tag_field is not None:
                    shape.tag_field, tag = one.tag_field, str(one.tag)
                    fields[one.tag_field] = None
                shape.objects[tag] = fields
    return shape if shape.objects or shape.items is not None else None

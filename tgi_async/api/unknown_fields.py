"""The fields of a body that its schema does not have.

A decoder of types passes over them. They are found by going through the body once more, along the
types: only objects of the schema are opened, everything else is skipped as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
from msgspec import Raw, inspect

MOST_FIELDS = 200
"""Of one body that are told of."""
MOST_OBJECTS = 2000
"""That are opened in one body: some 10 ms. What comes later is not looked at."""

Unknown = dict[str, Raw]
"""Values by path, such as `messages.content.foo`, which has no places in lists. A field that is
null asks for nothing, and is left out."""

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_LIST = msgspec.json.Decoder(list[Raw])


def unknown_fields(raw: bytes, body_type: Any) -> Unknown:
    """Those of a body that was decoded to this type."""
    shape = _shape_of(body_type)
    walk = _Walk()
    if shape is not None:
        walk.look_at(Raw(raw), shape, "")
    return walk.found


@dataclass(slots=True)
class _Shape:
    """What a value may be: one of several objects, a list, or anything that is not looked into."""

    objects: dict[str | None, dict[str, _Shape | None]] = field(default_factory=dict)
    """Fields by name, of each object by its tag."""
    tag_field: str | None = None
    items: _Shape | None = None

    def fields_of(self, value: dict[str, Raw]) -> dict[str, _Shape | None]:
        """The fields of the object that this is."""
        tag = None
        if self.tag_field is not None and self.tag_field in value:
            tag = msgspec.json.decode(value[self.tag_field], type=str)
        return self.objects.get(tag) or next(iter(self.objects.values()))


class _Walk:
    """On its way through one body."""

    def __init__(self) -> None:
        self.found: Unknown = {}
        self._left = MOST_OBJECTS

    def look_at(self, raw: Raw, shape: _Shape, path: str) -> None:
        """Take down the unknown fields of a value. Its path ends with a dot, or is empty."""
        begins = bytes(memoryview(raw)[:1])
        if begins == b"[" and shape.items is not None:
            for item in _LIST.decode(raw)[: self._left]:
                self.look_at(item, shape.items, path)
        elif begins == b"{" and shape.objects and self._left > 0:
            self._left -= 1
            value = _OBJECT.decode(raw)
            fields = shape.fields_of(value)
            for name, part in value.items():
                if name not in fields:
                    self._take(f"{path}{name}", part)
                elif (inner := fields[name]) is not None:
                    self.look_at(part, inner, f"{path}{name}.")

    def _take(self, path: str, value: Raw) -> None:
        if len(self.found) < MOST_FIELDS and bytes(memoryview(value)[:4]) != b"null":
            self.found.setdefault(path, value)


@cache
def _shape_of(body_type: Any) -> _Shape | None:
    return _made(inspect.type_info(body_type))


def _made(info: inspect.Type) -> _Shape | None:
    """None where there is nothing to look into."""
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

"""Parse a JSON value incrementally: open containers, and the items and names so far."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class OpenContainer:
    """An open array or object."""

    is_array: bool
    schemas: tuple[Any, ...]
    """Schemas that it may have, without `anyOf` and `$ref`."""
    compared: bool
    index: int = 0
    name: str = ""
    at_name: bool = False
    start: int | None = None
    """Where the item or the name begins; None outside of one."""
    seen: tuple[bytes, ...] = ()
    values: frozenset[str] = frozenset()


@dataclass(slots=True)
class JsonText:
    """An incomplete JSON value, and the schemas of its parts."""

    root: Any
    schemas: tuple[Any, ...]
    written: bytearray = field(default_factory=bytearray)
    frames: list[OpenContainer] = field(default_factory=list)
    in_string: bool = False
    escaped: bool = False
    in_scalar: bool = False
    ended: bool = False

    def copy(self) -> JsonText:
        return replace(self, written=bytearray(self.written), frames=list(self.frames))

    def feed(self, byte: int) -> None:
        """Accept one more byte of the value, or the byte after it."""
        at = len(self.written)
        self.written.append(byte)
        if self.in_string:
            if self.escaped:
                self.escaped = False
            elif byte == 0x5C:
                self.escaped = True
            elif byte == 0x22:
                self.in_string = False
                self._end_string()
            return
        if not self.frames and byte not in b'[{" \n\t\r':
            self.ended = True
        elif byte == 0x22:  # "
            self._begin(at)
            self.in_string = True
        elif byte in b"[{":
            self._begin(at)
            self.frames.append(self._frame(byte == 0x5B))
        elif byte in b"]}":
            self._end_scalar(at)
            if self.frames:
                self.frames.pop()
            self._end_value(len(self.written))
        elif byte == 0x2C:  # ,
            self._end_scalar(at)
            if self.frames:
                frame = self.frames[-1]
                self.frames[-1] = replace(frame, index=frame.index + 1, at_name=not frame.is_array)
        elif byte == 0x3A:  # :
            if self.frames:
                self.frames[-1] = replace(self.frames[-1], at_name=False)
        elif byte not in b" \n\t\r" and not self.in_scalar:
            self._begin(at)
            self.in_scalar = True

    def _begin(self, at: int) -> None:
        if not self.frames:
            return
        frame = self.frames[-1]
        if frame.start is None and (frame.is_array or frame.at_name):
            self.frames[-1] = replace(frame, start=at)

    def _frame(self, is_array: bool) -> OpenContainer:
        inside = tuple(self._inside())
        kind = "array" if is_array else "object"
        schemas = tuple(one for one in inside if _may_be(one, kind))
        compared = any(
            one.get("uniqueItems") if is_array else one.get("minProperties", 0) > 1
            for one in schemas
        )
        return OpenContainer(is_array, schemas, compared, at_name=not is_array)

    def _inside(self) -> Iterator[dict[str, Any]]:
        """Return the schemas that the value beginning here may have."""
        if not self.frames:
            yield from _flat(self.schemas, self.root)
            return
        frame = self.frames[-1]
        for one in frame.schemas:
            if frame.is_array:
                prefix = one.get("prefixItems", ())
                at = prefix[frame.index] if frame.index < len(prefix) else one.get("items")
                yield from _flat((at,), self.root)
            elif frame.name in one.get("properties", ()):
                yield from _flat((one["properties"][frame.name],), self.root)
            else:
                yield from _flat(one.get("patternProperties", {}).values(), self.root)
                yield from _flat((one.get("additionalProperties"),), self.root)

    def _end_string(self) -> None:
        if not self.frames or not self.frames[-1].at_name:
            self._end_value(len(self.written))
            return
        frame = self.frames[-1]
        assert frame.start is not None
        text = bytes(self.written[frame.start :])
        name = value_of(text)
        seen, values = frame.seen, frame.values
        if frame.compared:
            seen, values = (*seen, text), values | {name}
        self.frames[-1] = replace(
            frame, name=json.loads(name) if name else "", start=None, seen=seen, values=values
        )

    def _end_scalar(self, at: int) -> None:
        if self.in_scalar:
            self.in_scalar = False
            self._end_value(at)

    def _end_value(self, end: int) -> None:
        if not self.frames:
            self.ended = True
            return
        frame = self.frames[-1]
        if not frame.is_array or frame.start is None:
            return
        if frame.compared:
            text = bytes(self.written[frame.start : end])
            frame = replace(frame, seen=(*frame.seen, text), values=frame.values | {value_of(text)})
        self.frames[-1] = replace(frame, start=None)


def _flat(schemas: Iterable[Any], root: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    for one in schemas:
        if not isinstance(one, dict) or depth > 64:
            continue
        if "$ref" in one:
            name = one["$ref"].rpartition("/")[2]
            yield from _flat((root["$defs"][name],), root, depth + 1)
        elif "anyOf" in one:
            yield from _flat(one["anyOf"], root, depth + 1)
        else:
            yield one


def _may_be(schema: dict[str, Any], kind: str) -> bool:
    types = schema.get("type", kind)
    return bool(types == kind or kind in types)


def value_of(text: bytes) -> str:
    """Return a key that is the same for texts of equal values; empty for invalid JSON."""
    try:
        return json.dumps(_plain(json.loads(text)), sort_keys=True)
    except ValueError:
        return ""


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value

"""Arrays whose items differ, and objects whose names do: what no grammar without memory can say.

A matcher is wrapped: the text is followed as it grows, and of the tokens that the engine allows,
those are taken away that would end an item like an earlier one of its array, or lead to where
nothing else can come.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import GrammarError, Matcher

SPANNING = re.compile(rb',\s?(".*"|[^"\s\[{]+[,\]}]|\[.*\]|\{.*\})', re.DOTALL)
"""Of tokens: an item that begins and ends in one."""
NEXT = re.compile(rb".,\s?[^\s]", re.DOTALL)
"""Of tokens: the end of an item and the beginning of the next one."""
OPENING = re.compile(rb"[\"\]}],\s?[\"\[{]")
"""Of tokens: no more than that; they are common, and allowed where something can follow."""
BEHIND = re.compile(rb".+[\"\]},]", re.DOTALL)
"""Of tokens: something, and then what may end an item."""
FREE = 64
FREE_NUMBERS = 8
"""Other tokens that may come: where there are so many, there always are some."""
LONGEST_TOKEN = 64
"""Bytes that are looked up."""


def contexts(grammar: Grammar) -> list[tuple[bytes, Any]]:
    """Schemas that compare items or count names, each with the text right before its value.

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


class Tokens:
    """The bytes of a vocabulary's tokens, in order."""

    def __init__(self, texts: Sequence[bytes], special: Container[int]) -> None:
        """`texts` by token, empty for what has none; special tokens are no part of a value."""
        ordered = sorted(
            (text, token) for token, text in enumerate(texts) if text and token not in special
        )
        self.texts = texts
        self._texts = [text for text, _ in ordered]
        self._ids = [token for _, token in ordered]
        self.spanning = [token for text, token in ordered if SPANNING.search(text)]
        self.next = [token for text, token in ordered if NEXT.search(text)]
        self.opening = [token for token in self.next if OPENING.fullmatch(texts[token])]
        self.with_quote = {token for token, text in enumerate(texts) if b'"' in text}
        self.behind = [token for text, token in ordered if BEHIND.match(text)]

    def that_begin(self, rest: bytes) -> list[int]:
        """Tokens whose text begins with `rest`, which is not empty."""
        low = bisect_left(self._texts, rest)
        high = bisect_left(self._texts, rest + b"\xff" * LONGEST_TOKEN)
        return self._ids[low:high]

    def within(self, rest: bytes) -> Iterator[tuple[int, int]]:
        """Length and token of each text that `rest` begins with, not the whole."""
        for length in range(1, min(len(rest), LONGEST_TOKEN)):
            at = bisect_left(self._texts, rest[:length])
            while at < len(self._texts) and self._texts[at] == rest[:length]:
                yield length, self._ids[at]
                at += 1

    def of(self, text: bytes) -> list[int] | None:
        """Tokens of a text, the longest first; None if there are none."""
        found: list[int] = []
        while text:
            longest = 0
            for length in range(min(len(text), LONGEST_TOKEN), 0, -1):
                at = bisect_left(self._texts, text[:length])
                if at < len(self._texts) and self._texts[at] == text[:length]:
                    found.append(self._ids[at])
                    longest = length
                    break
            if not longest:
                return None
            text = text[longest:]
        return found


@dataclass(frozen=True, slots=True)
class Frame:
    """An array or object that is open."""

    is_array: bool
    schemas: tuple[Any, ...]
    """What it may be of, without `anyOf` and `$ref`."""
    compared: bool
    index: int = 0
    name: str = ""
    at_name: bool = False
    start: int | None = None
    """Where the item, or the name, begins; None before and behind it."""
    seen: tuple[bytes, ...] = ()
    values: frozenset[str] = frozenset()


@dataclass(slots=True)
class Text:
    """A value in JSON as it grows, and what may be where."""

    root: Any
    schemas: tuple[Any, ...]
    written: bytearray = field(default_factory=bytearray)
    frames: list[Frame] = field(default_factory=list)
    in_string: bool = False
    escaped: bool = False
    in_scalar: bool = False
    ended: bool = False

    def copy(self) -> Text:
        return replace(self, written=bytearray(self.written), frames=list(self.frames))

    def feed(self, byte: int) -> None:
        """Take one more byte of the value, or what comes right behind it."""
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

    def _frame(self, is_array: bool) -> Frame:
        inside = tuple(self._inside())
        kind = "array" if is_array else "object"
        schemas = tuple(one for one in inside if _may_be(one, kind))
        compared = any(
            one.get("uniqueItems") if is_array else one.get("minProperties", 0) > 1
            for one in schemas
        )
        return Frame(is_array, schemas, compared, at_name=not is_array)

    def _inside(self) -> Iterator[dict[str, Any]]:
        """The schemas that the value that begins here may be of."""
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
    """The same for texts of equal values; empty if it is no value."""
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


class UniqueMatcher:
    """See `engine.Matcher`: that of an engine, without what `contexts` forbid."""

    def __init__(self, inner: Matcher, tokens: Tokens, schemas: list[tuple[bytes, Any]]) -> None:
        self._inner = inner
        self._tokens = tokens
        self._schemas = schemas
        self._longest = max(len(before) for before, _ in schemas)
        self._tail = b""
        """The end of the text outside of values."""
        self._text: Text | None = None
        self._is_trial = False
        self._free: set[tuple[int, bytes]] = set()
        """Texts of items behind whose parts many other tokens may come."""
        self._merged: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        self._look_for_value()

    def fill(self, mask: NDArray[np.int32]) -> None:
        """See `engine.Matcher`."""
        self._inner.fill(mask)
        text = self._text
        if text is None:
            return
        refused = self._refused(text)
        if not self._is_trial:
            refused -= self._openings(text, mask)
        refused |= self._equal(text)
        allowed = mask.copy()
        _clear(mask, refused)
        if not mask.any():
            self._fill_parts(allowed, mask, refused)

    def _openings(self, text: Text, mask: NDArray[np.int32]) -> set[int]:
        """Of the tokens that end an item and begin another, those that something can follow."""
        found = set[int]()
        compared = [frame for frame in text.frames if frame.compared]
        bits = mask.view(np.uint32)
        for token in self._tokens.opening if compared else ():
            if not bits[token // 32] >> np.uint32(token % 32) & np.uint32(1):
                continue
            key = _key(compared[-1], b"")
            if key not in self._free:
                trial = self.copy()
                trial._is_trial = True
                try:
                    trial.advance([token])
                    left = np.zeros_like(mask)
                    trial.fill(left)
                except GrammarError:
                    continue
                n = int(np.unpackbits(left.view(np.uint8)).sum())
                if n >= FREE:
                    self._free.add(key)
                elif not n:
                    continue
            found.add(token)
        return found

    def _fill_parts(
        self, allowed: NDArray[np.int32], mask: NDArray[np.int32], refused: set[int]
    ) -> None:
        """Allow the beginnings of tokens that are refused: an engine may name only the longest
        where the text that must come is known.
        """
        bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
        for token in map(int, np.flatnonzero(bits)[:FREE]):
            text = self._tokens.texts[token] if token < len(self._tokens.texts) else b""
            for _, part in self._tokens.within(text):
                if part not in refused:
                    mask.view(np.uint32)[part // 32] |= np.uint32(1 << part % 32)

    def advance(self, tokens: Sequence[int]) -> None:
        """See `engine.Matcher`."""
        self._inner.advance(tokens)
        for token in tokens:
            for byte in self._tokens.texts[token] if token < len(self._tokens.texts) else b"":
                self._feed(byte)

    def forced(self) -> list[int]:
        """See `engine.Matcher`."""
        forced = self._inner.forced()
        if self._text is None or not forced:
            return forced
        way = self.copy()
        for index, token in enumerate(forced):
            text = way._text
            if text is not None and token in way._refused(text) | way._equal(text):
                return forced[:index]
            way.advance([token])
        return forced

    @property
    def complete(self) -> bool:
        """See `engine.Matcher`."""
        return self._inner.complete

    @property
    def ended(self) -> bool:
        """See `engine.Matcher`."""
        return self._inner.ended

    @property
    def nbytes(self) -> int:
        """See `engine.Matcher`: what is followed here is as long as the text."""
        return self._inner.nbytes

    def copy(self) -> UniqueMatcher:
        """See `engine.Matcher`."""
        other = UniqueMatcher.__new__(UniqueMatcher)
        other.__dict__.update(self.__dict__)
        other._inner = self._inner.copy()
        other._text = None if self._text is None else self._text.copy()
        return other

    def _feed(self, byte: int) -> None:
        if self._text is not None:
            self._text.feed(byte)
            if self._text.ended:
                self._text, self._tail = None, b""
            return
        self._tail = (self._tail + bytes([byte]))[-max(1, self._longest) :]
        self._look_for_value()

    def _look_for_value(self) -> None:
        found = tuple(
            schema
            for before, schema in self._schemas
            if (self._tail.endswith(before) if before else not self._tail)
        )
        if len(found) == 1:
            self._text = Text(found[0], found)
        elif found:
            key = tuple(map(id, found))
            if key not in self._merged:
                self._merged[key] = [_inlined(one, f"{at}.") for at, one in enumerate(found)]
            options = self._merged[key]
            defs = {name: one for option in options for name, one in option["$defs"].items()}
            self._text = Text({"$defs": defs}, tuple(options))

    def _refused(self, text: Text) -> set[int]:
        """Tokens that go from one item into the next, and so are not looked at."""
        refused = set(self._tokens.spanning)
        if any(frame.compared for frame in text.frames):
            refused.update(self._tokens.next)
        return refused & self._tokens.with_quote if text.in_string else refused

    def _equal(self, text: Text) -> set[int]:
        """Tokens that end an item like an earlier one, or lead to where nothing else can come."""
        refused = set[int]()
        for depth, frame in enumerate(text.frames):
            if frame.compared and frame.seen:
                self._compare(text, depth, frame, refused)
        return refused

    def _compare(self, text: Text, depth: int, frame: Frame, refused: set[int]) -> None:
        begun = b"" if frame.start is None else bytes(text.written[frame.start :])
        ahead = b""
        if frame.start is None:
            if depth < len(text.frames) - 1 or text.in_string:
                return  # inside the value of a name
            if text.written.rstrip(b" ")[-1:] == b":":
                return
            ahead = {b",": b" ", b"[": b"", b"{": b""}.get(bytes(text.written[-1:]), b", ")
            if text.written[-2:] == b", ":
                ahead = b""
        ends = [ahead + end for one in frame.seen for end in ends_of(one)]
        rests = [end[len(begun) :] for end in ends if end.startswith(begun) and end != begun]
        if begun:
            self._close(text, depth, frame, begun, refused)
        for rest in rests:
            refused.update(self._tokens.that_begin(rest))
        self._keep_ways_out(frame, begun, rests, refused)

    def _close(self, text: Text, depth: int, frame: Frame, begun: bytes, refused: set[int]) -> None:
        """Refuse to end the item where it is equal to one that is written in another way."""
        inside = len(text.frames) - 1 - depth
        if inside:
            closers: tuple[bytes, ...] = (b"]", b"}")
        elif text.in_string:
            if b"\\u" not in begun:
                return
            closers = (b'"',)
        elif re.search(rb"[.eE]|-0", begun):
            closers = (b",", b"]")
        else:
            return
        refused.update(
            token
            for token in self._tokens.behind
            if any(closer in self._tokens.texts[token][1:] for closer in closers)
        )
        if inside > 1 or (inside and text.in_string):
            return
        if inside:
            whole = begun + (b"]" if text.frames[-1].is_array else b"}")
        else:
            whole = begun + b'"' if text.in_string else begun
        if value_of(whole) in frame.values:
            for closer in closers:
                refused.update(self._tokens.that_begin(closer))

    def _keep_ways_out(
        self, frame: Frame, begun: bytes, rests: list[bytes], refused: set[int]
    ) -> None:
        """Refuse tokens from which on only an earlier item can be written."""
        stuck: dict[int, bool] = {}
        for rest in rests:
            key = _key(frame, begun + rest)
            last = len(rest) - 1 if key in self._free else self._way_out(rest, rests, key)
            for length, token in self._tokens.within(rest):
                stuck[token] = stuck.get(token, True) and length > last
        refused.update(token for token, is_stuck in stuck.items() if is_stuck)

    def _way_out(self, rest: bytes, rests: list[bytes], key: tuple[int, bytes]) -> int:
        """The last place along `rest` where something else may come; -1: none, not even here."""
        mask: NDArray[np.int32] = np.zeros(-(-len(self._tokens.texts) // 32), np.int32)
        for at in range(len(rest) - 1, -1, -1):
            tokens = self._tokens.of(rest[:at])
            if tokens is None:
                return len(rest) - 1
            way = self._inner.copy()
            try:
                if tokens:
                    way.advance(tokens)
                way.fill(mask)
            except GrammarError:
                continue
            along = [one[at:] for one in rests if one.startswith(rest[:at]) and len(one) > at]
            taken = {token for one in along for token in self._tokens.that_begin(one)}
            taken |= {token for one in along for _, token in self._tokens.within(one)}
            left = mask.copy()
            _clear(left, taken)
            n = int(np.unpackbits(left.view(np.uint8)).sum())
            if n:
                many = FREE if rest[-1:] in b'"]}' else FREE_NUMBERS
                if n >= many and at == len(rest) - 1:
                    self._free.add(key)
                return at
        return -1


def _key(frame: Frame, text: bytes) -> tuple[int, bytes]:
    return (id(frame.schemas[0]) if frame.schemas else 0, text)


def ends_of(text: bytes) -> tuple[bytes, ...]:
    """The texts with which an item would be equal to one, with what ends it.

    Numbers are written in many ways: what begins like the same number with a further 0 counts too.
    """
    if text[-1:] in (b'"', b"]", b"}"):
        return (text,)
    plain = value_of(text).encode() or text
    spelled = {plain, text} | ({b"-0"} if plain == b"0" else set())
    found = [one + closer for one in spelled for closer in (b",", b"]")]
    if plain[-1:].isdigit():
        found.append(plain + (b"0" if b"." in plain else b".0"))
    return tuple(found)


def _inlined(schema: Any, prefix: str) -> dict[str, Any]:
    """The schema with names of its own for what it shares."""
    written = json.dumps(schema).replace('"#/$defs/', f'"#/$defs/{prefix}')
    found: dict[str, Any] = json.loads(written)
    found["$defs"] = {f"{prefix}{name}": one for name, one in found.get("$defs", {}).items()}
    return found


def _clear(mask: NDArray[np.int32], tokens: Iterable[int]) -> None:
    bits = mask.view(np.uint32)
    for token in tokens:
        bits[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)


def without_unique(schema: Any) -> Any:
    """The schema without `uniqueItems`, which engines do not know."""
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

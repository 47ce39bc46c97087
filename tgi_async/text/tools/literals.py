"""Arguments as literals of a program, as in `get_weather(city="Seoul", days=3)`: LFM2's format, and
Gemma 4's with marks instead of quotes: `get_weather{city:<|"|>Seoul<|"|>,days:3}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.notation import (
    ANNOTATIONS,
    ANY_TEXT,
    MAX_NAME,
    MAX_REFERENCES,
    Emit,
    NotForced,
    Terms,
    as_json,
    branches_of,
    in_string,
    one_of,
    properties_of,
    text_up_to,
    types_of,
)
from tgi_async.text.tools.reader import MAX_DEPTH, SPACE, Reader, Reading

_WORD = re.compile(r"[-+.\w]+")
_PLAIN = re.compile(r"[^\\'\"]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {"True": "true", "False": "false", "None": "null"}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "\n": ""}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = "0123456789abcdefABCDEF"
_AFTER_STRING = ",)]}:"


@dataclass(frozen=True, slots=True)
class LiteralNotation:
    """Names with values between brackets. JSON's keywords are read as well as Python's.

    `quote` is a mark around strings, which have no escapes then; without it they are Python's.
    """

    opening: str = "("
    closing: str = ")"
    assign: str = "="
    comma: str = ", "
    quote: str = ""

    @property
    def first(self) -> str:
        """See `Notation`."""
        return self.opening

    @property
    def literals(self) -> tuple[str, ...]:
        """See `Notation`."""
        return (self.quote,) if self.quote else ()

    # -- writing --------------------------------------------------------------------------------

    def write(self, arguments: Mapping[str, Any]) -> str:
        """See `Notation`."""
        named = (f"{name}{self.assign}{self._written(v)}" for name, v in arguments.items())
        return self.opening + self.comma.join(named) + self.closing

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return (
                f"{self.quote}{value}{self.quote}"
                if self.quote
                else json.dumps(value, ensure_ascii=False)
            )
        if isinstance(value, list):
            return "[" + self.comma.join(map(self._written, value)) + "]"
        if isinstance(value, dict):
            if self.quote:
                return LiteralNotation("{", "}", ":", self.comma, self.quote).write(value)
            members = (f"{self._written(k)}: {self._written(v)}" for k, v in value.items())
            return "{" + ", ".join(members) + "}"
        return json.dumps(value) if self.quote else repr(value)

    # -- reading --------------------------------------------------------------------------------

    def begins(self, reader: Reader) -> Reading[bool]:
        """See `Notation`."""
        return (yield from reader.next()) == self.opening

    def read(self, reader: Reader, schema: Any, emit: Emit) -> Reading[None]:
        """See `Notation`. Arguments without a name are the schema's properties, in order."""
        r = reader
        properties = schema.get("properties") if isinstance(schema, dict) else None
        unnamed = iter(properties if isinstance(properties, dict) else ())
        begun = "{"
        r.at += 1
        while True:
            r.kept = None
            yield from r.skip(SPACE + ",")
            if not self._begins_value((yield from r.next())):
                break
            r.ran_out = False
            name = yield from self._name(r)
            if name is None and r.ran_out and r.truncated:
                r.take_all()
                return
            if name is None and (name := next(unnamed, None)) is None:
                break
            emit(f"{begun}{json.dumps(name, ensure_ascii=False)}: ")
            begun = ", "
            yield from r.skip()
            if not self._begins_value((yield from r.next())):
                if not (yield from _is_cut(r)):
                    emit("null")
                break
            if not (yield from self._value(r, emit)):
                break
        if (yield from r.next()) == self.closing:
            r.at += 1
        elif (yield from _is_cut(r)):
            return
        emit("{}" if begun == "{" else "}")

    def json_of(self, text: str) -> str | None:
        """Return a whole text that is a value, as JSON. None: it is not a value."""
        reader = Reader()
        reader.feed(text)
        reader.end()
        pieces: list[str] = []
        try:
            next(self._value(reader, pieces.append, words=False))
        except StopIteration as stop:
            return "".join(pieces) if stop.value and reader.at == len(text) else None
        return None

    def _begins_value(self, c: str) -> bool:
        quotes = self.quote[:1] or "'\""
        return bool(c) and (c in "[({" or c in quotes or _WORD.match(c) is not None)

    def _name(self, r: Reader) -> Reading[str | None]:
        """Read a name and its assignment. None: they do not come next; nothing is consumed."""
        r.kept = start = r.at
        while (c := (yield from r.next())) and _WORD.match(c) and r.at - start < MAX_NAME:
            r.at += 1
        name = r.slice(start)
        yield from r.skip()
        found = name and (yield from r.next()) == self.assign
        r.at = r.at + 1 if found else start
        r.kept = None
        return name if found else None

    def _value(self, r: Reader, emit: Emit, *, words: bool = True) -> Reading[bool]:
        """Read the value that begins here, and emit it as JSON; other words become strings.

        False: it breaks off into something else. What was emitted is whole unless it was cut off.
        """
        open_: list[str] = []
        while True:
            c = yield from r.next()
            if c and c in _CLOSING:
                if len(open_) == MAX_DEPTH:
                    return (yield from _abandon(r, open_, emit, "null"))
                r.at += 1
                open_.append(_CLOSING[c])
                emit("{" if c == "{" else "[")
                yield from r.skip()
                if (yield from r.next()) != open_[-1]:
                    if not (yield from self._member(r, open_[-1], "", emit)):
                        return (yield from _abandon(r, open_, emit))
                    continue
            elif not (yield from self._scalar(r, emit, words)):
                return (yield from _abandon(r, open_, emit, "null"))
            # Behind a value, or right behind an opening bracket with nothing in it.
            while open_:
                yield from r.skip()
                c = yield from r.next()
                if c == ",":
                    r.at += 1
                    yield from r.skip()
                    if (yield from r.next()) == open_[-1]:
                        continue
                    if not (yield from self._member(r, open_[-1], ", ", emit)):
                        return (yield from _abandon(r, open_, emit))
                    break
                if c != open_[-1]:
                    return (yield from _abandon(r, open_, emit))
                r.at += 1
                emit("}" if open_.pop() == "}" else "]")
            else:
                return True

    def _member(self, r: Reader, closing: str, comma: str, emit: Emit) -> Reading[bool]:
        """Read what is before the next value of a list or a dictionary. False: there is none."""
        if not self._begins_value((yield from r.next())):
            return False
        if closing != "}":
            emit(comma)
            return True
        key: list[str] = []
        if not (yield from self._scalar(r, key.append, True)):
            return False
        yield from r.skip()
        if (yield from r.next()) != ":":
            return False
        r.at += 1
        yield from r.skip()
        if not self._begins_value((yield from r.next())):
            return False
        text = "".join(key)
        emit(f"{comma}{text if text.startswith(chr(34)) else json.dumps(text)}: ")
        return True

    def _scalar(self, r: Reader, emit: Emit, words: bool) -> Reading[bool]:
        r.ran_out = False
        if self.quote and (yield from r.literal([self.quote])) is not None:
            yield from self._marked_string(r, emit)
            return True
        if r.ran_out and r.truncated:
            r.take_all()
            return False
        c = yield from r.next()
        if not self.quote and c and c in "'\"":
            yield from _string(r, emit)
            return True
        return (yield from _word(r, emit, words))

    def _marked_string(self, r: Reader, emit: Emit) -> Reading[None]:
        """Read a string after its first mark, and the other mark."""
        plain = re.compile(f"[^{re.escape(self.quote[0])}]+")
        emit('"')
        r.ran_out = False
        while c := (yield from r.next()):
            if c == self.quote[0] and (yield from r.literal([self.quote])) is not None:
                emit('"')
                return
            if r.ran_out and r.truncated:
                r.take_all()
                return
            start = r.at
            r.at += 1
            r.run(plain)
            r.kept = None
            emit(in_string(r.slice(start)))
        if not r.truncated:
            emit('"')

    # -- forcing --------------------------------------------------------------------------------

    def any(self, terms_of: Terms) -> Grammar:
        """See `Notation`. With marks instead of quotes, values are not nested."""
        value: Grammar = terms.Json(True)
        if self.quote:
            mark = terms_of(self.quote)
            string = terms.Sequence([*mark, *text_up_to(ANY_TEXT, mark)])
            scalar = terms.Json({"type": ["number", "boolean", "null"]})
            value = terms.Choice([string, scalar])
        name = terms.Regex(r"[A-Za-z_][0-9A-Za-z_]{0,63}")
        one = terms.Sequence([name, terms.Text(self.assign), value])
        return terms.Sequence(
            [
                terms.Text(self.opening),
                terms.Repeat(one, separator=self.comma),
                terms.Text(self.closing),
            ]
        )

    def forced(self, schema: dict[str, Any], terms_of: Terms) -> Grammar:
        """See `Notation`. Required arguments come first."""
        return self._forced_members(schema, schema, terms_of, 0)

    def _forced_members(
        self, schema: Any, root: dict[str, Any], terms_of: Terms, depth: int
    ) -> Grammar:
        first: list[Grammar] = []
        further: list[Grammar] = []
        for name, given, required in properties_of(schema):
            value = self._forced_value(name, given, root, terms_of, depth)
            part = terms.Sequence([terms.Text(f"{name}{self.assign}"), value])
            (first if required else further).append(part)
        members = _listed(first, further, self.comma)
        return terms.Sequence([terms.Text(self.opening), *members, terms.Text(self.closing)])

    def _forced_value(
        self, name: str, given: Any, root: dict[str, Any], terms_of: Terms, depth: int
    ) -> Grammar:
        if depth > MAX_REFERENCES:
            raise NotForced(f"`{name}`, which has values inside of each other")
        branches = branches_of(given, root)
        if len(branches) > 1:
            return terms.Choice(
                [self._forced_value(name, one, root, terms_of, depth + 1) for one in branches]
            )
        schema = branches[0] if isinstance(branches[0], dict) else {}
        kind = next(iter(types_of(schema, root)))
        rest = schema.keys() - ANNOTATIONS
        if kind == "boolean" and not rest and not self.quote:
            return terms.Choice([terms.Text("True"), terms.Text("False")])
        if not self.quote or kind in ("integer", "number", "boolean", "null"):
            return as_json(given, root)
        if kind == "object" and rest <= {"properties", "required", "additionalProperties"}:
            inner = LiteralNotation("{", "}", ":", self.comma, self.quote)
            return inner._forced_members(schema, root, terms_of, depth + 1)
        if kind == "array" and rest <= {"items", "minItems", "maxItems"}:
            item = self._forced_value(name, schema.get("items", {}), root, terms_of, depth + 1)
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            items = terms.Repeat(item, least, most, self.comma)
            return terms.Sequence([terms.Text("["), items, terms.Text("]")])
        mark = terms_of(self.quote)
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if rest <= {"enum", "const"} and all(isinstance(one, str) for one in values):
            if not values:
                return terms.Sequence([*mark, *text_up_to(ANY_TEXT, mark)])
            return terms.Sequence([*mark, one_of([terms.Text(one) for one in values]), *mark])
        raise NotForced(f"`{name}`, a value with `{min(rest, default='enum')}`")


def _listed(first: list[Grammar], further: list[Grammar], comma: str) -> list[Grammar]:
    """Return all of `first` and any of `further`, in this order, with commas between."""

    def behind(part: Grammar) -> Grammar:
        return terms.Sequence([terms.Text(comma), part])

    rest = [terms.Repeat(behind(part), 0, 1) for part in further]
    if first:
        return [first[0], *map(behind, first[1:]), *rest]
    options = [terms.Sequence([part, *rest[place + 1 :]]) for place, part in enumerate(further)]
    return [terms.Repeat(one_of(list(options)), 0, 1)] if options else []


PYTHON = LiteralNotation()
GEMMA = LiteralNotation("{", "}", ":", ",", '<|"|>')


def _is_cut(r: Reader) -> Reading[bool]:
    """Return whether the text was cut off here."""
    return not (yield from r.next()) and r.truncated


def _abandon(r: Reader, open_: list[str], emit: Emit, value: str = "") -> Reading[bool]:
    """Close what is open, unless the text was cut off."""
    if not (yield from _is_cut(r)):
        emit(value + "".join("}" if one == "}" else "]" for one in reversed(open_)))
    return False


def _word(r: Reader, emit: Emit, words: bool) -> Reading[bool]:
    """Read a number or a word."""
    kept, r.kept = r.kept, r.at if r.kept is None else r.kept
    start = r.at
    while (c := (yield from r.next())) and _WORD.match(c):
        r.run(_WORD)
    text = r.slice(start)
    r.kept = kept
    if not text or (yield from _is_cut(r)):
        return False  # it may go on
    text = _WORDS.get(text, text)
    if text in ("true", "false", "null") or _NUMBER.fullmatch(text):
        emit(text)
        return True
    if words:
        emit(json.dumps(text, ensure_ascii=False))
    return words


def _string(r: Reader, emit: Emit) -> Reading[None]:
    """Read a Python string, in pieces.

    Its quote ends it where something follows that may be behind a string: models leave quotes
    inside of a string as they are.
    """
    quote = yield from r.next()
    r.at += 1
    emit('"')
    while c := (yield from r.next()):
        r.kept = start = r.at
        r.at += 1
        if c == "\\":
            emit((yield from _escaped(r)))
        elif c == quote and (yield from _ends_string(r)):
            emit('"')
            return
        else:
            r.run(_PLAIN)
            emit(in_string(r.slice(start)))
        r.kept = None
    if not r.truncated:
        emit('"')


def _ends_string(r: Reader) -> Reading[bool]:
    ahead = 0
    while (c := (yield from r.next(ahead))) and c in SPACE:
        ahead += 1
    return not c or c in _AFTER_STRING


def _escaped(r: Reader) -> Reading[str]:
    """Read what is after a backslash; return its text within a JSON string."""
    c = yield from r.next()
    if not c:
        return ""
    r.at += 1
    if c in _HEX_DIGITS:
        digits = ""
        while len(digits) < _HEX_DIGITS[c] and (d := (yield from r.next())) and d in _HEX:
            digits += d
            r.at += 1
        code = int(digits or "0", 16)
        if len(digits) == _HEX_DIGITS[c] and code < 0x110000:
            return f"\\u{code:04x}" if 0xD800 <= code < 0xE000 else in_string(chr(code))
        return in_string(f"\\{c}{digits}")
    if c in _ESCAPES:
        return in_string(_ESCAPES[c])
    return in_string(c if c in "\\'\"" else f"\\{c}")

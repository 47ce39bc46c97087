"""Arguments in tags, as Qwen3-Coder, GLM, MiniMax and others write them:

    <parameter=city>
    Seoul
    </parameter>

A string stands there as it is, any other value in JSON. Where the tags do not say which, it takes
the function's schema to tell the two apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.literals import PYTHON
from tgi_async.text.tools.notation import (
    ANNOTATIONS,
    ANY_TEXT,
    MAX_NAME,
    SCALARS,
    Emit,
    NotForced,
    Terms,
    as_json,
    branches_of,
    escaped,
    in_string,
    is_one_of,
    one_of,
    properties_of,
    property_of,
    text_up_to,
    type_of,
    types_of,
)
from tgi_async.text.tools.reader import Reader, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """A parameter is `begin`, its name, one of `named`, its value, and `end`."""

    begin: str
    named: tuple[tuple[str, tuple[str, ...]], ...]
    """Texts between a name and its value, by the types of the value; where there are none, types
    come from the schema. The first that fits is written."""
    end: str
    end_call: tuple[str, ...]
    """Marks after the last parameter."""
    also_begin: tuple[str, ...] = ()
    also_end: tuple[str, ...] = ()
    """Alternatives that are read for `begin` and `end`."""
    lines: bool = False
    """Whether a value is on lines of its own: one line break on each side is not part of it."""

    @property
    def first(self) -> str:
        """See `Notation`."""
        return "".join({mark.lstrip()[0] for mark in (*self._begins, *self.end_call)})

    @property
    def _begins(self) -> tuple[str, ...]:
        return (self.begin, *self.also_begin)

    @property
    def _ends(self) -> list[str]:
        return [mark.strip() for mark in (self.end, *self.also_end)]

    @property
    def literals(self) -> tuple[str, ...]:
        """See `Notation`."""
        named = (text for text, _ in self.named)
        return (*self._begins, self.end, *self.also_end, *self.end_call, *named)

    # -- writing --------------------------------------------------------------------------------

    def write(self, arguments: Mapping[str, Any]) -> str:
        """See `Notation`."""
        written: list[str] = []
        for name, value in arguments.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            written += (self.begin, name, self._named(type_of(value)), text, self.end)
        return "".join(written)

    def _named(self, kind: str) -> str:
        """Return what is between the name and a value of this type."""
        return next(
            (text for text, kinds in self.named if not kinds or kind in kinds), self.named[0][0]
        )

    # -- reading --------------------------------------------------------------------------------

    def begins(self, reader: Reader) -> Reading[bool]:
        """See `Notation`."""
        at = reader.at
        found = yield from _spaced(reader, (*self._begins, *self.end_call))
        reader.at = at
        return found

    def read(self, reader: Reader, schema: Any, emit: Emit) -> Reading[None]:
        """See `Notation`."""
        r = reader
        begun, ended = "{", False
        while True:
            r.kept = at = r.at
            if not (yield from _spaced(r, self._begins)):
                ended = yield from _spaced(r, self.end_call)
                break
            found = yield from self._name(r)
            if found is None:
                r.at = at
                break
            name, kinds = found
            emit(f"{begun}{json.dumps(name, ensure_ascii=False)}: ")
            begun = ", "
            yield from self._value(r, kinds or types_of(property_of(schema, name), schema), emit)
        rest = yield from r.next()
        if ended or not r.truncated or (rest and not r.ran_out):
            emit("{}" if begun == "{" else "}")

    def _name(self, r: Reader) -> Reading[tuple[str, Collection[str]] | None]:
        """Read a parameter's name and what is after it; return the types that this gives, if
        any."""
        stops = {text[0] for text, _ in self.named} | {"\n"}
        yield from r.skip()
        start = r.at
        while (c := (yield from r.next())) and c not in stops and r.at - start < MAX_NAME:
            r.at += 1
        name = r.slice(start)
        for text, kinds in self.named:
            if (yield from r.spaced(text)):
                return name, kinds
        return None

    def _value(self, r: Reader, types: Collection[str], emit: Emit) -> Reading[None]:
        if self.lines:
            yield from r.literal(["\n"])
        if set(types) == {"string"}:
            yield from self._string(r, emit)
            return
        r.kept = start = r.at
        others = (mark.strip() for mark in (*self._begins, *self.end_call))
        yield from r.until([*self._ends, *others])
        text = r.slice(start)
        if not r.truncated or (yield from r.next()):
            emit(_value_of(text.removesuffix("\n") if self.lines else text, types))
        yield from r.literal(self._ends)

    def _string(self, r: Reader, emit: Emit) -> Reading[None]:
        """Read a string, which is emitted in pieces, as it may be a whole file."""
        ends = self._ends
        if self.lines:
            ends = [*("\n" + end for end in ends), *ends]
        firsts = {one[0] for one in ends}
        plain = re.compile(f"[^{re.escape(''.join(firsts))}]+")
        emit('"')
        r.ran_out = False
        while c := (yield from r.next()):
            if c in firsts and (yield from r.literal(ends)) is not None:
                emit('"')
                return
            if r.ran_out and r.truncated:
                return  # what is left begins like the mark
            start = r.at
            r.at += 1
            r.run(plain)
            r.kept = None
            emit(in_string(r.slice(start)))
        if not r.truncated:
            emit('"')

    # -- forcing --------------------------------------------------------------------------------

    def any(self, terms_of: Terms) -> Grammar:
        """See `Notation`."""
        named: list[Grammar] = [
            terms.Sequence([*terms_of(text), *text_up_to(ANY_TEXT, terms_of(self.end))])
            for text, _ in self.named
        ]
        stops = {text[0] for text, _ in self.named}
        name = terms.Regex(f"[^{escaped(''.join(sorted(stops)))}\\n]{{1,{MAX_NAME}}}")
        return terms.Repeat(terms.Sequence([*terms_of(self.begin), name, one_of(named)]))

    def forced(self, schema: dict[str, Any], terms_of: Terms) -> Grammar:
        """See `Notation`."""
        parts: list[Grammar] = []
        for name, given, required in properties_of(schema):
            begun = terms_of(f"{self.begin}{name}")
            part = terms.Sequence([*begun, self._forced_value(name, given, schema, terms_of)])
            parts.append(part if required else terms.Repeat(part, 0, 1))
        return terms.Sequence(parts)

    def _forced_value(
        self, name: str, given: Any, root: dict[str, Any], terms_of: Terms
    ) -> Grammar:
        """Return what is between the name and the value, the value, and what ends it."""
        branches = _split(branches_of(given, root))
        kinds = {self._named(next(iter(types_of(one, root)))) for one in branches}
        if len(branches) > 1 and len(kinds) == 1:
            branches = _distinguished(name, branches, root)
        options: list[Grammar] = []
        for branch in branches:
            types = types_of(branch, root)
            named, end = terms_of(self._named(next(iter(types)))), terms_of(self.end)
            if "string" in types:
                value = self._forced_string(name, branch if isinstance(branch, dict) else {}, end)
            else:
                value = [as_json(branch, root), *end]
            options.append(terms.Sequence([*named, *value]))
        return one_of(options)

    def _forced_string(
        self, name: str, schema: dict[str, Any], end: list[Grammar]
    ) -> list[Grammar]:
        rest = schema.keys() - ANNOTATIONS
        if not rest:
            return text_up_to(ANY_TEXT, end)
        if rest <= {"enum", "const"}:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
                raise NotForced(f"`{name}`, a string whose values are others")
            return [one_of([terms.Text(value) for value in values]), *end]
        if rest <= {"minLength", "maxLength"}:
            least, most = schema.get("minLength", 0), schema.get("maxLength", "")
            inner = f"[^{escaped(self.end.strip()[0])}]"
            return text_up_to(f"{inner}{{{least},{most}}}", end)
        raise NotForced(f"`{name}`, a string with `{min(rest)}`")


def _spaced(r: Reader, marks: tuple[str, ...]) -> Reading[bool]:
    """Consume one of these and white space before it, if that is what comes next."""
    for mark in marks:
        if (yield from r.spaced(mark)):
            return True
    return False


def _split(branches: list[Any]) -> list[Any]:
    """Return the branches with the strings of an `enum` apart from its other values."""
    found: list[Any] = []
    for branch in branches:
        values = branch.get("enum") if isinstance(branch, dict) and "type" not in branch else None
        if not isinstance(values, list):
            found.append(branch)
            continue
        texts = [value for value in values if isinstance(value, str)]
        others = [value for value in values if not isinstance(value, str)]
        found += [{**branch, "enum": some} for some in (texts, others) if some]
    return found


def _distinguished(name: str, branches: list[Any], root: Any) -> list[Any]:
    """Return the branches that can be distinguished where the tags give no type.

    A text that can be read as a value of another branch is read as that.
    """
    strings = [one for one in branches if types_of(one, root) == {"string"}]
    if not strings:
        return branches
    others = [one for one in branches if types_of(one, root) != {"string"}]
    types = {kind for one in others for kind in types_of(one, root)}
    plain = all(isinstance(one, dict) and not one.keys() - ANNOTATIONS for one in others)
    if plain and types <= set(SCALARS):
        free = [one for one in strings if not one.keys() & {"enum", "const"}]
        return free[:1] or branches
    values = [value for one in strings for value in (one.get("enum") or [one.get("const")])]
    if all(isinstance(one, str) and not is_one_of(_read(one), types) for one in values):
        return branches
    raise NotForced(f"`{name}`, which is a string or something else")


def _value_of(text: str, types: Collection[str]) -> str:
    """Return a value of one of these types as JSON; an invalid text becomes a string."""
    value = _read(text)
    if is_one_of(value, types):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False)


def _read(text: str) -> Any:
    """Return the value of a text in JSON or in Python, else the text itself."""
    written = text.strip()
    try:
        return json.loads(written, strict=False)
    except (ValueError, RecursionError):
        found = PYTHON.json_of(written)
        return text if found is None else json.loads(found)

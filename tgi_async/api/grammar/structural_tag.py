"""Convert structural tags, as vLLM and SGLang take them, to terms.

https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar

DEEPEST = 32
"""Most nested formats."""


class TagError(Exception):
    """It is no structural tag, or not a supported one; the message says what and where."""


class _Format(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Common settings of every format."""


class _Text(_Format, frozen=True, tag="const_string"):
    value: str


class _Json(_Format, frozen=True, tag="json_schema"):
    json_schema: Any
    style: str = "json"


class _Any(_Format, frozen=True, tag="any_text"):
    excludes: list[str] = []


class _Grammar(_Format, frozen=True, tag="grammar"):
    grammar: str
    syntax: str = "ebnf"


class _Regex(_Format, frozen=True, tag="regex"):
    pattern: str


class _Sequence(_Format, frozen=True, tag="sequence"):
    elements: list[AnyFormat]


class _Or(_Format, frozen=True, tag="or"):
    elements: list[AnyFormat]


class _Optional(_Format, frozen=True, tag="optional"):
    content: AnyFormat


class _Star(_Format, frozen=True, tag="star"):
    content: AnyFormat


class _Plus(_Format, frozen=True, tag="plus"):
    content: AnyFormat


class _Tag(_Format, frozen=True, tag="tag"):
    begin: str
    content: AnyFormat
    end: str


class _Triggered(_Format, frozen=True, tag="triggered_tags"):
    triggers: list[str]
    tags: list[_Tag]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = []


class _Separated(_Format, frozen=True, tag="tags_with_separator"):
    tags: list[_Tag]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


AnyFormat = (
    _Text
    | _Json
    | _Any
    | _Grammar
    | _Regex
    | _Sequence
    | _Or
    | _Optional
    | _Star
    | _Plus
    | _Tag
    | _Triggered
    | _Separated
)


class _Structure(Struct, frozen=True):
    begin: str
    end: str
    schema: Any = None


class _Whole(Struct, frozen=True, kw_only=True):
    """The older form has `structures` and `triggers`."""

    type: str = "structural_tag"
    format: AnyFormat | UnsetType = UNSET
    structures: list[_Structure] | UnsetType = UNSET
    triggers: list[str] | UnsetType = UNSET


def term_of_tag(value: Any) -> Grammar:
    """Return the grammar of a structural tag, or of a text in JSON that holds one."""
    try:
        if isinstance(value, str):
            whole = msgspec.json.decode(value, type=_Whole)
        else:
            whole = msgspec.convert(value, _Whole)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise TagError(f"it is no structural tag that can be followed: {error}") from error
    except RecursionError as error:
        raise TagError("it is nested too deep") from error
    if whole.structures is not UNSET and whole.triggers is not UNSET:
        tags = [
            _Tag(one.begin, _Any() if one.schema is None else _Json(one.schema), one.end)
            for one in whole.structures
        ]
        return _term(_Triggered(whole.triggers, tags), 0)
    if whole.format is UNSET:
        raise TagError("it must have a `format`, or `structures` and `triggers`")
    return _term(whole.format, 0)


def _term(format: AnyFormat, depth: int) -> Grammar:
    if depth > DEEPEST:
        raise TagError("it is nested too deep")
    match format:
        case _Text(value):
            return terms.Text(value)
        case _Json(schema, style):
            if style != "json":
                raise TagError(f"`style` must be json. Given: {style[:40]!r}")
            return terms.Json(schema)
        case _Any(excludes):
            return _any_text(excludes)
        case _Grammar(grammar, syntax):
            return _context_free(grammar, syntax)
        case _Regex(pattern):
            return terms.Regex(pattern)
        case _Sequence(elements):
            return _sequence(elements, depth)
        case _Or(elements):
            return terms.Choice([_term(one, depth + 1) for one in elements])
        case _Optional(content):
            return terms.Repeat(_term(content, depth + 1), 0, 1)
        case _Star(content):
            return terms.Repeat(_term(content, depth + 1))
        case _Plus(content):
            return terms.Repeat(_term(content, depth + 1), 1)
        case _Tag(begin):
            return terms.Sequence([terms.Text(begin), *_behind_begin(format, depth)])
        case _Triggered():
            return _triggered(format, depth)
        case _Separated(tags, separator):
            most = 1 if format.stop_after_first else None
            options = terms.Choice([_term(tag, depth + 1) for tag in tags])
            return terms.Repeat(options, int(format.at_least_one), most, separator)


def _sequence(elements: list[AnyFormat], depth: int) -> Grammar:
    parts: list[Grammar] = []
    places = iter(range(len(elements)))
    for place in places:
        one = elements[place]
        following = elements[place + 1] if place + 1 < len(elements) else None
        if isinstance(one, _Any) and isinstance(following, _Text) and following.value:
            _any_text(one.excludes)
            parts.append(terms.Prose(following.value))
            next(places)
        else:
            parts.append(_term(one, depth + 1))
    return terms.Sequence(parts)


def _behind_begin(tag: _Tag, depth: int) -> list[Grammar]:
    if isinstance(tag.content, _Any) and tag.end:
        _any_text(tag.content.excludes)
        return [terms.Prose(tag.end)]
    return [_term(tag.content, depth + 1), terms.Text(tag.end)]


def _triggered(format: _Triggered, depth: int) -> Grammar:
    _any_text(format.excludes)
    tags = []
    for tag in format.tags:
        triggers = [one for one in format.triggers if one and tag.begin.startswith(one)]
        if len(triggers) != 1:
            raise TagError(
                f"a tag must begin with exactly one of the triggers. Given: {tag.begin[:40]!r}"
            )
        content, *end = _behind_begin(tag, depth)
        ended = tag.end if end else ""
        tags.append(terms.Tag(triggers[0], tag.begin, content, ended))
    return terms.Tagged(tags, begins=format.at_least_one, ends=format.stop_after_first)


def _any_text(excludes: list[str]) -> Grammar:
    if excludes:
        raise TagError("`excludes` is not supported")
    return terms.Regex("(?s:.*)")


def _context_free(grammar: str, syntax: str) -> Grammar:
    made = terms.ContextFree(grammar)
    if syntax != ("ebnf" if made.is_ebnf else "lark"):
        raise TagError("`grammar` must be EBNF (`root ::= ...`), or Lark with `syntax` lark")
    return made

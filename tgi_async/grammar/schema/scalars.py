"""Clauses of scalar values: constants, patterns and formats."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from tgi_async.grammar.schema.automaton import automaton, has_choice
from tgi_async.grammar.schema.clause import (
    ANYTHING,
    NOTHING,
    ArrayClause,
    Clause,
    NumberClause,
    ObjectClause,
    Requirement,
    SomeProperty,
    StringClause,
    UnsupportedKeyword,
)
from tgi_async.grammar.schema.document import MAX_DEPTH, Document, SchemaNode
from tgi_async.grammar.schema.errors import UnsupportedSchema, unsupported
from tgi_async.grammar.schema.formats import FORMATS, FORMATS_AS_PATTERNS
from tgi_async.grammar.schema.keywords import TYPES
from tgi_async.grammar.schema.regex import NotRegular, is_plain

NEVER = "^[^\\s\\S]$"
"""A pattern that matches no text."""
_NOT_OF_BOTH = re.compile(r"(?<!\\)(?:\\\\)*\\[AzZ]")
r"""`\A` and the like: an anchor in one dialect of regular expressions, a letter in another."""

_ANGLE = re.compile(r"(?<!\\)((?:\\\\)*)\\([<>])")
"""Characters that stand for themselves, and are word boundaries to engines after a backslash."""


def pattern_clause(pattern: str, pointer: str) -> Clause:
    """Return the clause of a string in which `pattern` matches somewhere.

    Raises UnsupportedSchema for one that is read in two ways; what an engine cannot do, it says.
    """
    pattern = _ANGLE.sub(r"\1\2", pattern)
    plain = plain_pattern(pattern, pointer)
    patterns = [plain]
    if plain == pattern and (parts := _parts(pattern)):
        with suppress(NotRegular):
            patterns = [
                plain_pattern(one, pointer) if holds else _others(one) for one, holds in parts
            ]
    return Clause(strings=StringClause(patterns=tuple((one, pointer) for one in patterns)))


def _others(pattern: str) -> str:
    """Return a pattern of the texts in which this one matches nowhere. Raises NotRegular."""
    found = automaton(pattern, wide=True).negated()
    return NEVER if found.is_empty else found.pattern()


def _parts(pattern: str) -> list[tuple[str, bool]]:
    """Return patterns that hold, or with False do not, where one that begins with a lookahead
    matches.

    Together their automaton may be too large, where that of each is not.
    """
    parts: list[tuple[str, bool]] = []
    rest = pattern.removeprefix("^")
    while rest[:3] in ("(?=", "(?!"):
        end = _closing(rest)
        if end is None:
            return []
        ahead = rest[3:end]
        parts.append((f"^(?:{ahead})" if has_choice(ahead) else f"^{ahead}", rest[2] == "="))
        rest = rest[end + 1 :]
    if not parts or pattern[:1] != "^" or has_choice(rest):
        return []
    return [*parts, (f"^{rest}", True)]


def _closing(text: str) -> int | None:
    """Return where the group that the text begins with ends."""
    depth, in_class, escaped = 0, False, False
    for at, letter in enumerate(text):
        if escaped or letter == "\\":
            escaped = not escaped
        elif in_class or letter == "[":
            in_class = letter != "]"
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if not depth:
                return at
    return None


def plain_pattern(pattern: str, pointer: str) -> str:
    """Return a pattern for the same texts, or fewer, that engines read. Raises
    UnsupportedSchema."""
    if _NOT_OF_BOTH.search(pattern):
        raise unsupported("pattern", pointer, r"`\A` and `\Z` are written `^` and `$`")
    pattern = _ANGLE.sub(r"\1\2", pattern)
    if is_plain(pattern):
        return pattern
    try:
        found = automaton(pattern)
        return NEVER if found.is_empty else found.pattern()
    except NotRegular:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            re.compile(pattern)
        except Warning as warning:
            raise unsupported("pattern", pointer, f"it is read in two ways: {warning}") from warning
        except (re.error, OverflowError, RecursionError):
            pass  # the dialect is not Python's
    return pattern


def other_strings(pattern: str, beyond: UnsupportedKeyword) -> StringClause:
    """Return the clauses of strings in which `pattern` matches nowhere."""
    try:
        written = _others(pattern)
    except NotRegular:
        return StringClause(beyond=((pattern, beyond),))
    return StringClause(
        patterns=((written, beyond.pointer),), negated=(plain_pattern(pattern, beyond.pointer),)
    )


def format_clause(name: str, pointer: str) -> Clause:
    """Return the clause of strings of this format; any value for a format that is not enforced."""
    if name in FORMATS_AS_PATTERNS:
        return Clause(strings=StringClause(patterns=((FORMATS_AS_PATTERNS[name], pointer),)))
    return Clause(strings=StringClause(formats=(name,))) if name in FORMATS else Clause()


def constant_clauses(
    document: Document, node: SchemaNode, values: Sequence[Any], path: tuple[str | None, ...]
) -> list[Clause]:
    """Return clauses of these values, which are at `path` inside the schema; None in it: their
    index."""
    types: set[str] = set()
    booleans: set[bool] = set()
    strings: list[str] = []
    clauses: list[Clause] = []
    for index, value in enumerate(values):
        at = tuple(index if step is None else step for step in path)
        if value is None:
            types.add("null")
        elif isinstance(value, bool):
            types.add("boolean")
            booleans.add(value)
        elif isinstance(value, str):
            types.add("string")
            strings.append(value)
        elif isinstance(value, int | float):
            number = _number(value)
            same = NumberClause(number, number, integer=isinstance(number, int))
            clauses.append(Clause(frozenset({"number"}), numbers=same))
        elif isinstance(value, list):
            clauses.append(_list_clause(document, node, value, at))
        else:
            clauses.append(_object_clause(document, node, value, at))
    if types:
        among = StringClause(among=tuple(dict.fromkeys(strings)))
        clauses.insert(
            0, Clause(frozenset(types), frozenset(booleans or {True, False}), strings=among)
        )
    return clauses


def other_than(
    document: Document, node: SchemaNode, value: Any, at: tuple[str | int, ...]
) -> list[Clause]:
    """Return clauses of any value but this one."""
    every = frozenset(TYPES)
    if value is None:
        return [Clause(every - {"null"})]
    if isinstance(value, bool):
        return [Clause(booleans=frozenset({not value}))]
    if isinstance(value, str):
        return [Clause(strings=StringClause(none_of=(value,)))]
    if isinstance(value, int | float):
        number = _number(value)
        more = Clause(frozenset({"number"}), numbers=NumberClause(above=number))
        return [Clause(numbers=NumberClause(below=number)), more]
    if isinstance(value, list):
        length = len(value)
        array = frozenset({"array"})
        clauses = [Clause(every - array), Clause(array, arrays=ArrayClause(least=length + 1))]
        if length:
            clauses.append(Clause(array, arrays=ArrayClause(most=length - 1)))
        for index, item in enumerate(value):
            unlike: Requirement = ((document.constant(node, item, *at, index), False),)
            prefix = (ANYTHING,) * index + (unlike,)
            clauses.append(Clause(array, arrays=ArrayClause(prefix, least=length, most=length)))
        return clauses
    thing = frozenset({"object"})
    another = SomeProperty(ANYTHING, None, tuple(value))
    clauses = [Clause(every - thing), Clause(thing, objects=ObjectClause(some=(another,)))]
    for name, item in value.items():
        unlike = ((document.constant(node, item, *at, name), False),)
        clauses.append(Clause(thing, objects=ObjectClause({name: NOTHING})))
        clauses.append(Clause(thing, objects=ObjectClause({name: unlike}, required=(name,))))
    return clauses


def _list_clause(
    document: Document, node: SchemaNode, value: list[Any], at: tuple[str | int, ...]
) -> Clause:
    _check_depth(node)
    items: tuple[Requirement, ...] = tuple(
        ((document.constant(node, item, *at, index), True),) for index, item in enumerate(value)
    )
    length = len(items)
    return Clause(
        frozenset({"array"}), arrays=ArrayClause(items, NOTHING, length, length, evaluated=0)
    )


def _object_clause(
    document: Document, node: SchemaNode, value: dict[str, Any], at: tuple[str | int, ...]
) -> Clause:
    _check_depth(node)
    properties: dict[str, Requirement] = {
        name: ((document.constant(node, item, *at, name), True),) for name, item in value.items()
    }
    objects = ObjectClause(properties, additional=NOTHING, required=tuple(value))
    return Clause(frozenset({"object"}), objects=objects)


def _check_depth(node: SchemaNode) -> None:
    if node.pointer.count("/") > 4 * MAX_DEPTH:
        raise UnsupportedSchema(f"the value at {node.pointer[:100]}... is nested too deep")


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


@lru_cache(maxsize=64)
def intersection(patterns: tuple[str, ...]) -> str:
    """Return a pattern of the texts that all of these match. Raises NotRegular."""
    one, *others = [automaton(pattern) for pattern in patterns]
    for other in others:
        one = one.intersect(other)
    return NEVER if one.is_empty else one.pattern()


def none_of_pattern(texts: tuple[str, ...]) -> str:
    """Return a regular expression, without lookahead, of all texts but these."""
    tree: dict[str, Any] = {}
    for text in texts:
        at = tree
        for letter in text:
            at = at.setdefault(letter, {})
        at[""] = {}
    return f"^(?s:{_other(tree)})$"


def _other(tree: dict[str, Any]) -> str:
    """Return a pattern of all texts that are not in a trie; an empty letter is the end of a
    text."""
    letters = [letter for letter in tree if letter]
    options = [] if "" in tree else [""]
    for letter in letters:
        options.append(re.escape(letter) + _other(tree[letter]))
    others = f"[^{''.join(_in_class(letter) for letter in letters)}]" if letters else "."
    options.append(f"{others}.*")
    return f"(?:{'|'.join(options)})"


def _in_class(letter: str) -> str:
    return f"\\{letter}" if letter in "\\]^-[&~|" else letter

"""Grammars that make a model call functions, or think before it answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools import tagged
from tgi_async.text.tools.format import Format
from tgi_async.text.tools.parser import Marks

_COMBINING = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties"}
)
"""Keywords with which a schema's `properties` may not be all that an object can have."""

IsSpecial = Callable[[str], bool]
"""Whether the tokenizer has a special token of this name."""


def forced(
    format: Format,
    functions: Sequence[tuple[str, Any]],
    is_special: IsSpecial,
    *,
    most: int | None = None,
) -> Grammar:
    """At least one call of these functions, names with schemas, and at most `most`; nothing else.

    A text that follows it is read by the format's parser as those calls.

    Raises:
        NotForced: the format has no way to hold arguments to one of the schemas.
    """
    w = format.written

    def text(given: str) -> list[Grammar]:
        return _parts(given, format.marks, is_special)

    calls: list[Grammar] = [
        terms.Sequence(
            [
                *text(format.call(name)),
                tagged.forced(schema, text) if format.tagged else terms.Json(schema),
                *text(w.end_call),
            ]
        )
        for name, schema in functions
    ]
    call = calls[0] if len(calls) == 1 else terms.Choice(calls)
    repeated = call if most == 1 else terms.Repeat(call, 1, most, w.between)
    return terms.Sequence([*text(w.begin), repeated, *text(w.end)])


def after_thoughts(answer: Grammar, marks: Marks, is_special: IsSpecial) -> Grammar:
    """Whatever the model thinks, up to the mark that ends it, and then the answer."""
    if is_special(marks.end):
        thoughts: list[Grammar] = [terms.Regex(r"(?s:.*)"), terms.Special(marks.end)]
    else:
        thoughts = [terms.Prose(marks.end)]
    return terms.Sequence([*thoughts, terms.Regex(r"\n{0,2}"), answer])


def arguments_schema(parameters: Any) -> Any:
    """The schema that the arguments of a call are held to.

    Arguments are an object; where the schema lists properties and says nothing of others, it has
    no others.
    """
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        return parameters
    schema = {"type": "object", **parameters}
    if "additionalProperties" not in schema and not _COMBINING & schema.keys():
        schema.setdefault("properties", {})
        schema["additionalProperties"] = False
    return schema


def _parts(text: str, marks: frozenset[str], is_special: IsSpecial) -> list[Grammar]:
    """`text` as terms: its special tokens, and what is between them."""
    special = [mark for mark in marks if is_special(mark)]
    if not special:
        return [terms.Text(text)] if text else []
    longest_first = sorted(special, key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [
        terms.Special(piece) if piece in special else terms.Text(piece) for piece in pieces if piece
    ]

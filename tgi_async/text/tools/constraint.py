"""Grammars that make a model call functions, or think before it answers."""

from __future__ import annotations

import json
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

ANY_ARGUMENTS = {"type": "object"}

IsSpecial = Callable[[str], bool]
"""Whether the tokenizer has a special token of this name."""


def forced_calls(
    format: Format,
    functions: Sequence[tuple[str, Any]],
    is_special: IsSpecial,
    *,
    most: int | None = None,
) -> Grammar:
    """At least one call of these functions and at most `most`; nothing else.

    `functions` are names with the schemas of their arguments; None: any arguments. A text that
    follows it is read by the format's parser as those calls.

    Raises:
        NotForced: the format has no way to hold arguments to one of the schemas.
    """

    def text(given: str) -> list[Grammar]:
        return _parts(given, format.marks, is_special)

    def call(names: Sequence[str], schema: Any) -> Grammar:
        begun = [text(format.call(name)) for name in names]
        return terms.Sequence(
            [
                *(
                    begun[0]
                    if len(begun) == 1
                    else [terms.Choice(list(map(terms.Sequence, begun)))]
                ),
                _arguments(format, schema, text),
                *text(format.written.end_call),
            ]
        )

    return _repeated(format, [call(*one) for one in _by_schema(functions)], most, text)


def calls_or(
    format: Format,
    functions: Sequence[tuple[str, Any]],
    answer: Grammar,
    is_special: IsSpecial,
    *,
    most: int | None = None,
) -> Grammar:
    """Calls as `forced_calls` has them, or a text that follows `answer`.

    Raises:
        NotForced: see `forced_calls`.
    """
    if not format.bare:
        return terms.Choice([forced_calls(format, functions, is_special, most=most), answer])
    # The answer is most likely JSON as well, and an engine tells two values of JSON apart wherever
    # they differ, but not a value from a text that begins like it.
    name_key, arguments_key = json.loads(format.call("") + "null" + format.written.end_call)
    calls = [
        terms.Json(
            {
                "type": "object",
                "properties": {name_key: {"enum": names}, arguments_key: _as_resource(schema)},
                "required": [name_key, arguments_key],
                "additionalProperties": False,
            }
        )
        for names, schema in _by_schema(functions)
    ]
    repeated = _repeated(format, calls, most, lambda text: [terms.Text(text)] if text else [])
    return terms.Choice([repeated, answer])


def _by_schema(functions: Sequence[tuple[str, Any]]) -> list[tuple[list[str], Any]]:
    """Those that may have any arguments are one option together."""
    options: list[tuple[list[str], Any]] = [
        ([name], schema) for name, schema in functions if schema is not None
    ]
    free = [name for name, schema in functions if schema is None]
    return [*options, (free, None)] if free else options


def _arguments(format: Format, schema: Any, text: tagged.Terms) -> Grammar:
    if format.tagged:
        return tagged.any_arguments(text) if schema is None else tagged.forced(schema, text)
    return terms.Json(ANY_ARGUMENTS if schema is None else schema)


def _repeated(
    format: Format, calls: Sequence[Grammar], most: int | None, text: tagged.Terms
) -> Grammar:
    w = format.written
    call = calls[0] if len(calls) == 1 else terms.Choice(list(calls))
    repeated = call if most == 1 else terms.Repeat(call, 1, most, w.between)
    return terms.Sequence([*text(w.begin), repeated, *text(w.end)])


def _as_resource(schema: Any) -> Any:
    """A schema for inside of another: its references to `#` still lead to itself."""
    if schema is None:
        return ANY_ARGUMENTS
    if not isinstance(schema, dict) or "$id" in schema:
        return schema
    return {"$id": "urn:arguments", **schema}


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

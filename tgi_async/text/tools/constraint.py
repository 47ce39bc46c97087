"""Grammars that make a model call functions, or reason before it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.format import ID, Format, Marks, Turn
from tgi_async.text.tools.notation import ANY_TEXT, Terms, text_up_to

ANY_ARGUMENTS = {"type": "object"}
_ANY_ID = terms.Regex("[0-9A-Za-z_-]{1,64}")
_COMBINING = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties"}
)
"""Keywords with which a schema's `properties` may not be all that an object can have."""

Functions = Sequence[tuple[str, Any]]
"""Names with the schemas of their arguments; None: any arguments."""


def splitter(special: Collection[str]) -> Terms:
    """Return a function that splits texts into terms at the special tokens with these names."""
    longest_first = sorted(special, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if special else "$^")

    def terms_of(text: str) -> list[Grammar]:
        return [
            terms.Special(piece) if piece in special else terms.Text(piece)
            for piece in pattern.split(text)
            if piece
        ]

    return terms_of


def forced_calls(
    format: Format, functions: Functions, terms_of: Terms, *, most: int | None = None
) -> Grammar:
    """Return a grammar of at least one call of these functions and at most `most`; nothing else.

    A text that follows it is read by the format's parser as those calls.

    Raises:
        NotForced: the format has no way to hold arguments to one of the schemas.
    """
    calls = [_call(format, names, schema, terms_of) for names, schema in _by_schema(functions)]
    return _repeated(format, calls, most, terms_of)


def calls_or(
    format: Format,
    functions: Functions,
    answer: Grammar,
    terms_of: Terms,
    *,
    most: int | None = None,
) -> Grammar:
    """Return a grammar of calls, as in `forced_calls`, or a text that follows `answer`.

    Raises:
        NotForced: see `forced_calls`.
    """
    if not format.bare:
        return terms.Choice([forced_calls(format, functions, terms_of, most=most), answer])
    # The answer is most likely JSON as well, and an engine tells two values of JSON apart wherever
    # they differ, but not a value from a text that begins like it.
    calls = [_call_object(format, names, schema) for names, schema in _by_schema(functions)]
    return terms.Choice([_repeated(format, calls, most, terms_of), answer])


def held_calls(
    format: Format, functions: Functions, terms_of: Terms, *, turn: Turn, most: int | None = None
) -> Grammar:
    """Return a grammar of any text in which calls are of these functions and follow their schemas.

    Without a mark, a call begins where its arguments do. What is in the thoughts of `turn` is none.

    Raises:
        NotForced: see `forced_calls`.
    """
    thoughts = turn.thoughts if turn.thoughts and _is_text(turn.thoughts, terms_of) else None
    unlike = thoughts.begin if thoughts else ""
    before: list[Grammar] = []
    if thoughts:
        before.append(terms.Repeat(terms.Prose(thoughts.end, begin=thoughts.begin), 0, 1))
    elif turn.thoughts:
        before.append(_optional(*turn.thoughts, terms_of))
    if not _is_text((turn.answer,), terms_of):
        before.append(_optional(turn.answer, "", terms_of))
    calls: list[Grammar] = []
    if format.bare:
        for name, schema in functions:
            if schema is not None:
                opened = terms.Prose(format.opening(name), unlike=unlike)
                ended = terms_of(format.written.end_call)
                calls.append(terms.Sequence([opened, terms.Json(schema), *ended]))
    else:
        mark, inner, in_section = _without_mark(format)
        begun: list[Grammar] = [terms.Prose(mark, unlike=unlike)]
        if not _is_text((mark,), terms_of):
            begun = text_up_to(ANY_TEXT, terms_of(mark))
        rest = forced_calls(inner, functions, terms_of, most=most if in_section else 1)
        calls.append(terms.Sequence([*begun, rest]))
        most = 1 if in_section else most
    call = calls[0] if len(calls) == 1 else terms.Choice(calls)
    return terms.Sequence([*before, terms.Repeat(call, 0, most), terms.Regex(ANY_TEXT)])


def _is_text(texts: Collection[str], terms_of: Terms) -> bool:
    """Return whether there is no special token in any of them."""
    return all(isinstance(term, terms.Text) for text in texts for term in terms_of(text))


def _optional(begin: str, end: str, terms_of: Terms) -> Grammar:
    """Return a text between marks, or nothing."""
    body = text_up_to(ANY_TEXT, terms_of(end)) if end else [terms.Regex(ANY_TEXT)]
    return terms.Repeat(terms.Sequence([*terms_of(begin), *body]), 0, 1)


def _without_mark(format: Format) -> tuple[str, Format, bool]:
    """Return the mark that calls begin with, the format without it, and whether it is before all
    calls."""
    w = format.written
    begin, call = w.begin.lstrip(), w.call.lstrip()
    whole = begin + call
    mark = max((one for one in format.begin if whole.startswith(one)), key=len)
    if begin:
        written = w._replace(
            begin=whole[len(mark) : len(begin)], call=whole[max(len(begin), len(mark)) :]
        )
    else:
        written = w._replace(call=call[len(mark) :])
    return mark, replace(format, written=written), bool(begin)


def _by_schema(functions: Functions) -> list[tuple[list[str], Any]]:
    """Merge functions with any arguments into one option."""
    options: list[tuple[list[str], Any]] = [
        ([name], schema) for name, schema in functions if schema is not None
    ]
    free = [name for name, schema in functions if schema is None]
    return [*options, (free, None)] if free else options


def _call(format: Format, names: Sequence[str], schema: Any, terms_of: Terms) -> Grammar:
    begun = [_opening(format, name, terms_of) for name in names]
    one = begun[0] if len(begun) == 1 else [terms.Choice(list(map(terms.Sequence, begun)))]
    arguments: Grammar
    if format.notation is None:
        arguments = terms.Json(ANY_ARGUMENTS if schema is None else schema)
    elif isinstance(schema, dict):
        arguments = format.notation.forced(schema, terms_of)
    else:
        arguments = format.notation.any(terms_of)
    return terms.Sequence([*one, arguments, *terms_of(format.written.end_call)])


def _opening(format: Format, name: str, terms_of: Terms) -> list[Grammar]:
    before, *further = format.opening(name).split(ID)
    return [*terms_of(before), *(part for text in further for part in (_ANY_ID, *terms_of(text)))]


def _call_object(format: Format, names: Sequence[str], schema: Any) -> Grammar:
    """Return a call as one value of JSON."""
    members = json.loads(format.opening("") + "null" + format.written.end_call)
    properties: dict[str, Any] = {}
    for key in members:
        if key in format.name_keys:
            properties[key] = {"enum": names}
        else:
            inner = key in format.arguments_keys
            properties[key] = _as_resource(schema) if inner else {"type": "string"}
    return terms.Json(
        {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )


def _as_resource(schema: Any) -> Any:
    """Return a schema to be nested: its references to `#` still lead to itself."""
    if schema is None:
        return ANY_ARGUMENTS
    if not isinstance(schema, dict) or "$id" in schema:
        return schema
    return {"$id": "urn:arguments", **schema}


def _repeated(
    format: Format, calls: Sequence[Grammar], most: int | None, terms_of: Terms
) -> Grammar:
    w = format.written
    call = calls[0] if len(calls) == 1 else terms.Choice(list(calls))
    repeated = call
    if most != 1 and not format.one_call:
        repeated = terms.Repeat(call, 1, most, w.between)
    return terms.Sequence([*terms_of(w.begin), repeated, *terms_of(w.end)])


def after_thoughts(answer: Grammar, marks: Marks, terms_of: Terms) -> Grammar:
    """Return any reasoning, up to the mark that ends it, and then the answer."""
    first, *rest = terms_of(marks.end)
    thoughts: list[Grammar]
    if isinstance(first, terms.Text):
        thoughts = [terms.Prose(first.text), *rest]
    else:
        thoughts = [terms.Regex(r"(?s:.*)"), first, *rest]
    return terms.Sequence([*thoughts, terms.Regex(r"\n{0,2}"), answer])


def arguments_schema(parameters: Any) -> Any:
    """Return the schema that constrains a call's arguments.

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

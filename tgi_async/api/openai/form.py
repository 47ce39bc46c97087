"""Find the grammar of a request, in any of the fields of the OpenAI routes."""

from __future__ import annotations

from typing import Any, NamedTuple

from tgi_async.api.grammar.constraint import parsed
from tgi_async.api.grammar.schema import (
    ChoiceGrammar,
    ContextFreeGrammar,
    Grammar,
    JsonGrammar,
    JsonSchemaGrammar,
    RegexGrammar,
    StructuredOutputs,
    TagGrammar,
    grammar_of,
)
from tgi_async.api.openai.schema import OpenAIRequest
from tgi_async.errors import ValidationError

OUR_WHITESPACE = frozenset(
    {"[ ]?", " ?", "[ ]*", " *", r"\s*", r"\s?", r"[\n ]?", r"[\n ]*", r"[\n\t ]*", r"[ \t\n\r]*"}
)
"""Patterns of white space in JSON that our texts match: none, or one space behind a comma or a
colon."""


class Form(NamedTuple):
    """A grammar, and the client's name of its field."""

    field: str
    grammar: Grammar


def form_of(body: OpenAIRequest) -> Form | None:
    """Return the grammar, or None where there is none.

    Raises:
        ValidationError: two fields have one, or a field is not supported.
    """
    found: list[Form] = []

    def take(field: str, grammar: Grammar | None) -> None:
        if grammar is not None:
            found.append(Form(field, grammar))

    take("response_format", grammar_of(body.response_format))
    found += _structured(body.structured_outputs)
    for field, schema in ("guided_json", body.guided_json), ("json_schema", body.json_schema):
        take(field, None if schema is None else JsonGrammar(schema))
    for field, pattern in ("guided_regex", body.guided_regex), ("regex", body.regex):
        take(field, None if pattern is None else RegexGrammar(pattern))
    choices = body.guided_choice
    take("guided_choice", None if choices is None else ChoiceGrammar(choices))
    for field, text in ("guided_grammar", body.guided_grammar), ("ebnf", body.ebnf):
        take(field, None if text is None else ContextFreeGrammar(text))
    own = body.grammar
    take("grammar", ContextFreeGrammar(own) if isinstance(own, str) else own)
    tag = body.structural_tag
    take("structural_tag", None if tag is None else TagGrammar(tag))
    if len(found) > 1:
        raise _two(found)
    if not found:
        return None
    if isinstance(found[0].grammar, JsonGrammar | JsonSchemaGrammar):
        _check_whitespace("guided_whitespace_pattern", body.guided_whitespace_pattern)
    return found[0]


def _structured(given: StructuredOutputs | None) -> list[Form]:
    """Return the grammar of vLLM's `structured_outputs`, at most one."""
    if given is None:
        return []
    schema = {"type": "object"} if given.json_object else None
    kinds: list[tuple[str, Grammar | None]] = [
        ("json", None if given.json is None else JsonGrammar(given.json)),
        ("json_object", None if schema is None else JsonGrammar(schema)),
        ("regex", None if given.regex is None else RegexGrammar(given.regex)),
        ("choice", None if given.choice is None else ChoiceGrammar(given.choice)),
        ("grammar", None if given.grammar is None else ContextFreeGrammar(given.grammar)),
        (
            "structural_tag",
            None if given.structural_tag is None else TagGrammar(given.structural_tag),
        ),
    ]
    found = [
        Form(f"structured_outputs.{kind}", grammar)
        for kind, grammar in kinds
        if grammar is not None
    ]
    if len(found) > 1:
        raise _two(found)
    if found and isinstance(found[0].grammar, JsonGrammar):
        _check_whitespace("structured_outputs.whitespace_pattern", given.whitespace_pattern)
        if given.disable_additional_properties:
            field, grammar = found[0]
            try:
                return [Form(field, JsonGrammar(_closed(parsed(grammar.value, field))))]
            except RecursionError:
                raise ValidationError(f"`{field}` is nested too deep") from None
    return found


def _closed(schema: Any) -> Any:
    """Return the schema with `additionalProperties: false` where it lists properties."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if {"properties", "patternProperties"} & made.keys():
        made.setdefault("additionalProperties", False)
    return made


def _two(found: list[Form]) -> ValidationError:
    return ValidationError(
        f"`{found[0].field}` and `{found[1].field}` exclude each other: a text follows one "
        "grammar. Send one of them"
    )


def _check_whitespace(field: str, pattern: Any) -> None:
    if pattern is not None and pattern not in OUR_WHITESPACE:
        raise ValidationError(
            f"`{field}` is not supported, but for patterns that allow no white space and a single "
            f"space, such as '[ ]?'. Given: {pattern[:40]!r}"
        )

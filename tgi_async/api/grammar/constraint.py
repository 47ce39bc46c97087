"""Convert and check the grammars of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from tgi_async.api.dialect import OURS, Dialect
from tgi_async.api.grammar.schema import (
    ChoiceGrammar,
    ContextFreeGrammar,
    Grammar,
    JsonGrammar,
    JsonSchemaGrammar,
    RegexGrammar,
    TagGrammar,
)
from tgi_async.api.grammar.structural_tag import TagError, term_of_tag
from tgi_async.errors import ValidationError
from tgi_async.grammar import grammar as terms
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.grammar.schema.errors import InvalidSchema, SchemaError
from tgi_async.grammar.schema.normalize import parse


def term_of(grammar: Grammar, field: str, dialect: Dialect = OURS) -> terms.Grammar:
    """Return the grammar as workers take it; `field` is the client's name of it.

    Raises:
        ValidationError: it is no grammar.
    """
    match grammar:
        case RegexGrammar(value):
            return terms.Regex(value)
        case JsonSchemaGrammar(value):
            return terms.Json(_of_objects(value.schema))
        case ChoiceGrammar(value):
            if not value:
                raise ValidationError(f"`{field}` must have at least one text to choose")
            return terms.Choice([terms.Text(text) for text in dict.fromkeys(value)])
        case ContextFreeGrammar(value):
            if not value.strip():
                raise ValidationError(f"`{field}` must be a grammar. Given: an empty text")
            return terms.ContextFree(value)
        case TagGrammar(value):
            try:
                return term_of_tag(value)
            except TagError as error:
                raise ValidationError(f"`{field}`: {error}") from error
    value = parsed(grammar.value, field, dialect)
    if dialect.words_grammar_errors_like_tgi and not isinstance(value, dict):
        raise ValidationError("grammar is not supported")
    return terms.Json(_of_objects(value))


def parsed(schema: Any, field: str, dialect: Dialect = OURS) -> Any:
    """Return a schema, parsed if it is a text. Raise ValidationError for invalid JSON."""
    if not isinstance(schema, str):
        return schema
    try:
        return parse(schema)
    except SchemaError as error:
        _refuse(str(error), field, isinstance(error, InvalidSchema), dialect)


def _of_objects(schema: Any) -> Any:
    """Return the schema, for objects only if it names properties and no type, as in TGI.

    The standard lets any value that is no object satisfy it too.
    """
    if isinstance(schema, dict) and "properties" in schema and "type" not in schema:
        return {"type": "object", **schema}
    return schema


async def checked(
    checker: GrammarChecker | None,
    grammar: Grammar | None,
    constraint: terms.Grammar | None,
    field: str,
    *,
    ignore: Callable[[Iterable[str]], None],
    dialect: Dialect,
) -> str:
    """Check a grammar and return it encoded; empty for none.

    `constraint` holds `grammar` already, if there is one, and besides it only calls of `tools`.
    `ignore` gets the names of what has no meaning in its schemas.

    Raises:
        ValidationError: it cannot be followed; in the order and words of the `dialect`.
        Overloaded: too many are being checked.
    """
    if grammar is None and constraint is None:
        return ""
    if checker is None:
        raise ValidationError(
            "grammar is not supported"
            if dialect.words_grammar_errors_like_tgi
            else f"`{field}` is not supported: the server was started with "
            "--disable-grammar-support. Remove it from the request"
        )
    if constraint is None:
        assert grammar is not None
        constraint = term_of(grammar, field, dialect)
        check = await checker.check(constraint)
    else:
        check = await checker.check(constraint)
        if check.refusal and grammar is not None:
            alone = await checker.check(term_of(grammar, field, dialect))
            check, field = (alone, field) if alone.refusal else (check, "tools")
    if check.invalid:
        _refuse(check.refusal, field, True, dialect)
    if dialect.words_grammar_errors_like_tgi and isinstance(
        grammar, JsonGrammar | JsonSchemaGrammar
    ):
        schema = constraint.schema if isinstance(constraint, terms.Json) else {"properties": {}}
        if not isinstance(schema, dict) or "properties" not in schema:
            raise ValidationError("grammar is not valid: Grammar must have a 'properties' field")
    if check.refusal:
        regex = isinstance(constraint, terms.Regex)
        _refuse(check.refusal, field, regex, dialect)
    ignore(f"{field}.{name}" for name in check.ignored)
    return check.grammar


def _refuse(reason: str, field: str, invalid: bool, dialect: Dialect) -> NoReturn:
    if not dialect.words_grammar_errors_like_tgi:
        raise ValidationError(f"`{field}`: {reason}")
    if invalid:
        raise ValidationError(f"grammar is not valid: {reason}")
    raise ValidationError(f"cannot compile regex from schema: {reason}")

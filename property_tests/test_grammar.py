"""Whatever a grammar allows, its schema or regular expression accepts."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import pytest
from hypothesis import assume, event, given, reject
from hypothesis import strategies as st
from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft202012Validator,
)

from tests.grammar.engines import accepts, engine_of, one_line, walk
from tgi_async.grammar.grammar import Json, Regex
from tgi_async.grammar.schema.errors import SchemaError
from tgi_async.grammar.schema.normalize import normalize
from workers.grammar.engine import GrammarError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses what newer versions of jsonschema deprecate
    from hypothesis_jsonschema import from_schema

names = st.sampled_from(["a", "b", "é", 'q"', "한글", "n\n"])
leaves: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.just({}),
    st.builds(
        lambda kind: {"type": kind}, st.sampled_from(["null", "boolean", "number", "string"])
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-200, 200),
        st.integers(0, 1000),
    ),
    st.builds(
        lambda low, more: {"type": "number", "exclusiveMinimum": low, "maximum": low + more},
        st.floats(-100, 100).map(lambda it: round(it, 2)),
        st.integers(1, 9),
    ),
    st.builds(
        lambda least, more: {"minLength": least, "maxLength": least + more},
        st.integers(0, 4),
        st.integers(0, 5),
    ),
    st.builds(
        lambda pattern: {"type": "string", "pattern": pattern},
        st.sampled_from(
            [
                "^a+$",
                "b",
                "^[가-힣]{2}",
                "[0-9]$",
                '"',
                "\\\\",
                "^.{3}$",
                "^a|b$",
                "^(?!a).",
                "\\ba",
            ]
        ),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(
            st.sampled_from([None, True, False, 0, 1, 2.5, "a", "é\n", [1], {"a": 1}]),
            min_size=1,
            max_size=4,
        ),
    ),
    st.builds(lambda step: {"type": "integer", "multipleOf": step}, st.integers(1, 20)),
    st.just({"$ref": "#/$defs/it"}),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords = {
        "type": st.just("object"),
        "properties": st.dictionaries(names, inner, max_size=3),
        "required": st.lists(names, unique=True, max_size=2),
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(
            st.sampled_from(["^a", "^[a-x]", "b"]), inner, max_size=2
        ),
        "propertyNames": st.sampled_from([{"pattern": "^[ab]"}, {"maxLength": 2}, {"enum": ["a"]}]),
        "dependentRequired": st.dictionaries(names, st.just(["a"]), max_size=1),
        "dependentSchemas": st.dictionaries(names, inner, max_size=1),
        "minProperties": st.integers(0, 3),
        "maxProperties": st.integers(0, 3),
        "unevaluatedProperties": st.booleans(),
    }
    return st.fixed_dictionaries({}, optional=keywords)


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords = {
        "type": st.just("array"),
        "items": inner,
        "prefixItems": st.lists(inner, min_size=1, max_size=3),
        "minItems": st.integers(0, 3),
        "maxItems": st.integers(0, 4),
        "uniqueItems": st.booleans(),
        "contains": inner,
        "minContains": st.integers(0, 2),
        "maxContains": st.integers(0, 3),
        "unevaluatedItems": st.booleans(),
    }
    return st.fixed_dictionaries({}, optional=keywords)


def _mixed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    keywords = {
        "anyOf": several,
        "allOf": several,
        "oneOf": several,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
    }
    combined = st.fixed_dictionaries({}, optional=keywords)
    return st.one_of(
        combined,
        st.builds(lambda left, right: {**left, **right}, combined, _objects(inner)),
        st.builds(lambda left, right: {**left, **right}, combined, _arrays(inner)),
    )


schemas = st.recursive(
    leaves, lambda inner: _objects(inner) | _arrays(inner) | _mixed(inner), max_leaves=6
)


def _matcher(schema: Any) -> Any:
    """None if the schema is refused."""
    try:
        written = normalize(schema)
        return engine_of().matcher(Json(written))
    except (SchemaError, GrammarError) as refusal:
        event(re.sub(r"#\S*|'.*'|\d+", "_", str(refusal)).splitlines()[0][:60])
        return None


def _is_valid(schema: Any, value: Any) -> bool:
    try:
        return bool(Draft202012Validator(schema).is_valid(value))
    except RecursionError:  # a reference that leads back to itself, where nothing depends on it
        reject()


@given(schemas, schemas, st.integers(0, 2**32))
def test_every_text_that_a_grammar_allows_is_valid(schema: Any, shared: Any, seed: int) -> None:
    whole = {"$defs": {"it": shared}, "allOf": [schema]}
    matcher = _matcher(whole)
    assume(matcher is not None)
    for step in range(3):
        text, complete = walk(matcher, seed + step)
        if complete:
            event("complete")
            assert _is_valid(whole, json.loads(text)), (whole, normalize(whole), text)


values = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, -7, 2.5, 100, "", "a", "aa", "b", "é\n", 'x"', "한글"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)


@given(schemas, schemas, st.lists(values, min_size=1, max_size=8))
def test_a_grammar_allows_no_invalid_value_and_valid_ones_in_some_order(
    schema: Any, shared: Any, candidates: list[Any]
) -> None:
    """Every one, unless a keyword is there of which fewer values may be written."""
    whole = {"$defs": {"it": shared}, "allOf": [schema]}
    matcher = _matcher(whole)
    assume(matcher is not None)
    for value in candidates:
        accepted = any(accepts(matcher, text) for text in _orders(value))
        valid = _is_valid(whole, value)
        event(f"accepted: {accepted}")
        narrowed = any(f'"{keyword}"' in json.dumps(whole) for keyword in NARROWED)
        assert accepted == valid or (valid and narrowed), (whole, normalize(whole), value)


NARROWED = (
    "contains",
    "if",
    "maxProperties",
    "minProperties",
    "not",
    "oneOf",
    "pattern",
    "uniqueItems",
)


def _of_draft(schema: Any, draft: int) -> Any:
    """The schema in words of an older draft, where it has them."""
    if isinstance(schema, list):
        return [_of_draft(one, draft) for one in schema]
    if not isinstance(schema, dict):
        return ({} if schema else {"not": {}}) if isinstance(schema, bool) and draft < 6 else schema
    written: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "dependentSchemas"):
            value = {name: _of_draft(one, draft) for name, one in value.items()}
        elif keyword in ("enum", "required", "type", "dependentRequired"):
            pass
        elif not isinstance(value, bool) or keyword in ("items", "additionalProperties", "not"):
            value = _of_draft(value, draft)
        written[keyword] = value
    if "prefixItems" in written:
        rest = written.pop("items", None)
        written["items"] = written.pop("prefixItems")
        if rest is not None:
            written["additionalItems"] = rest
    for name in ("dependentRequired", "dependentSchemas"):
        if name in written and draft < 2019:
            written.setdefault("dependencies", {}).update(written.pop(name))
    if draft == 4 and "exclusiveMinimum" in written:
        written |= {"minimum": written.pop("exclusiveMinimum"), "exclusiveMinimum": True}
    if "$ref" in written:
        written["$ref"] = "#/definitions/it"
    return written


VALIDATORS = {4: Draft4Validator, 6: Draft6Validator, 7: Draft7Validator}


@given(st.sampled_from(sorted(VALIDATORS)), schemas, schemas, st.integers(0, 2**32))
def test_every_text_is_valid_in_the_draft_of_its_schema(
    draft: int, schema: Any, shared: Any, seed: int
) -> None:
    whole = {
        "$schema": f"http://json-schema.org/draft-0{draft}/schema#",
        "definitions": {"it": _of_draft(shared, draft)},
        "allOf": [_of_draft(schema, draft)],
    }
    matcher = _matcher(whole)
    assume(matcher is not None)
    for step in range(3):
        text, complete = walk(matcher, seed + step)
        if complete:
            event("complete")
            try:
                valid = VALIDATORS[draft](whole).is_valid(json.loads(text))
            except RecursionError:
                reject()
            assert valid, (whole, normalize(whole), text)


def _orders(value: Any) -> list[str]:
    """The texts of a value, with its properties in any order (two of them at most)."""
    if isinstance(value, list):
        texts = ["["]
        for index, item in enumerate(value):
            comma = ", " if index else ""
            texts = [f"{text}{comma}{more}" for text in texts for more in _orders(item)]
        return [f"{text}]" for text in texts]
    if isinstance(value, dict):
        items = list(value.items())
        found = []
        for order in (items, items[::-1]):
            texts = ["{"]
            for index, (name, one) in enumerate(order):
                key = ", " * bool(index) + one_line(name)
                texts = [f"{text}{key}: {more}" for text in texts for more in _orders(one)]
            found += [f"{text}}}" for text in texts]
        return found
    return [one_line(value)]


without_objects = st.recursive(
    leaves.filter(lambda schema: isinstance(schema, dict) and "type" in schema),
    lambda inner: st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    max_leaves=4,
)
"""hypothesis-jsonschema makes no objects with the version of hypothesis that is installed."""


@given(st.data(), without_objects)
def test_values_that_are_made_for_a_schema_are_accepted(data: st.DataObject, schema: Any) -> None:
    matcher = _matcher(schema)
    assume(matcher is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = data.draw(from_schema(schema))
    assume(_is_valid(schema, value) and _is_written(value))
    event(type(value).__name__)
    assert any(accepts(matcher, text) for text in _orders(value)), (
        schema,
        normalize(schema),
        value,
    )


def _is_written(value: Any) -> bool:
    """Whether `_orders` has it: few properties, and numbers and texts that are written one way."""
    if isinstance(value, dict):
        return len(value) <= 2 and all(map(_is_written, (*value, *value.values())))
    if isinstance(value, list):
        return all(map(_is_written, value))
    if isinstance(value, str):
        return value.isprintable()
    return not isinstance(value, float) or "e" not in repr(value)


pieces = st.sampled_from(
    ["a", "[b-d]", "\\d", "\\w", ".", "한", "(?:ab|c)", "[^a]", "\\.", "é?", "x{2,3}", "\\s"]
)
patterns = st.recursive(
    pieces,
    lambda inner: st.one_of(
        st.builds("({}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("({}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,3}", "{2}"])),
    ),
    max_leaves=6,
)


@given(patterns, st.integers(0, 2**32))
def test_every_text_that_a_regular_expression_allows_matches(pattern: str, seed: int) -> None:
    text, complete = walk(engine_of().matcher(Regex(pattern)), seed, 100)
    assume(complete)
    assert re.fullmatch(pattern, text, re.ASCII)


@pytest.mark.parametrize("seed", range(5))
def test_a_walk_can_fail(seed: int) -> None:
    """That the tests above look at something."""
    matcher = engine_of().matcher(Json({"type": "integer"}))
    text, complete = walk(matcher, seed)
    assert complete
    assert not _is_valid({"type": "string"}, json.loads(text))

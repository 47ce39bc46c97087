"""Items that differ, and names that are counted: what is written, and that it can always go on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.grammar.engines import accepts, engine_of, walk
from tgi_async.grammar.grammar import Choice, Json, Prose, Regex, Sequence, Tag, Tagged, Text
from tgi_async.grammar.schema.normalize import normalize
from workers.grammar.engine import GrammarError

SET = {"type": "array", "items": {"enum": ["ab", "abc", "ad", 1]}, "uniqueItems": True}
NARROW: list[dict[str, Any]] = [
    SET,
    {**SET, "minItems": 4},
    {
        "type": "array",
        "items": {"type": "string", "pattern": "^[ab]{1,2}$"},
        "uniqueItems": True,
        "minItems": 6,
    },
    {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 12},
        "uniqueItems": True,
        "minItems": 10,
    },
    {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "maximum": 2, "multipleOf": 0.5},
        "uniqueItems": True,
        "minItems": 3,
    },
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2},
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
            "required": ["a"],
            "additionalProperties": False,
        },
        "uniqueItems": True,
        "minItems": 5,
    },
    {
        "type": "array",
        "items": {"type": "string", "maxLength": 1, "pattern": "^[a-d]"},
        "uniqueItems": True,
        "minItems": 4,
    },
    {
        "type": "object",
        "minProperties": 3,
        "propertyNames": {"pattern": "^[ab]$|^c"},
        "additionalProperties": {"type": "null"},
    },
]
"""Few items are possible: the way must not lead to where all that could come is there already."""


@pytest.mark.parametrize("schema", NARROW, ids=lambda it: json.dumps(it)[:60])
def test_the_way_never_ends_where_only_earlier_items_could_come(schema: dict[str, Any]) -> None:
    matcher = engine_of().matcher(Json(normalize(schema)))
    for seed in range(5):
        text, complete = walk(matcher, seed, 600)
        assert complete, text
        assert Draft202012Validator(schema).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 3},
        {"uniqueItems": True, "type": "array", "items": {"type": "integer"}, "minItems": 3},
        {"uniqueItems": True, "type": "array", "minItems": 3, "maxItems": 5},
    ],
    ids=lambda it: json.dumps(it)[:60],
)
def test_open_items_differ(schema: dict[str, Any]) -> None:
    matcher = engine_of().matcher(Json(normalize(schema)))
    n_complete = 0
    for seed in range(12):
        text, complete = walk(matcher, seed, 300)
        n_complete += complete
        assert not complete or Draft202012Validator(schema).is_valid(json.loads(text)), text
    assert n_complete > 6


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('<t>["ab", "abc"]</t>', True),
        ('<t>["ab", "ab"]</t>', False),
        ('so ["ab", "ab"] it is <t>["ab", "ad"]</t> and <t>["ab"]</t>', True),
        ('<t>["ab", "ad"]</t> and <t>["ad", "ab", "ad"]</t>', False),
        ('<u>["ab", "ab"]</u>', True),
    ],
)
def test_a_value_within_a_text_is_found(text: str, taken: bool) -> None:
    free = {"type": "array", "items": {"enum": ["ab"]}}
    tags = [
        Tag("<t>", "<t>", Json(normalize(SET)), "</t>"),
        Tag("<u>", "<u>", Json(normalize(free)), "</u>"),
    ]
    assert accepts(engine_of().matcher(Tagged(tags)), text) == taken


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Sequence([Text("is "), Json(SET)]), 'is ["ab", 1]', "is [1, 1]"),
        (Sequence([Prose("="), Json(SET), Text(".")]), "a [1, 1] =[1].", "x=[1, 1]."),
        (Choice([Json(SET), Text("none")]), "none", "[1, 1]"),
        (
            Choice([Json(SET), Json({"type": "object", "additionalProperties": SET})]),
            '{"a": [1], "b": [1]}',
            '{"a": [1, 1]}',
        ),
    ],
)
def test_items_are_compared_in_a_larger_grammar(
    grammar: Choice | Sequence, good: str, bad: str
) -> None:
    matcher = engine_of().matcher(grammar)
    assert accepts(matcher, good)
    assert not accepts(matcher, bad)


def test_a_value_behind_an_unknown_text_is_refused() -> None:
    with pytest.raises(GrammarError, match="need a known text before the value"):
        engine_of().matcher(Sequence([Regex("[a-z]+"), Json(SET)]))


def test_what_must_come_is_not_forced_past_an_equal_item() -> None:
    schema = {"type": "array", "items": {"enum": ["abcdef", "abcxyz"]}, "uniqueItems": True}
    normal = normalize(schema)
    assert isinstance(normal, dict)
    matcher = engine_of().matcher(Json({**normal, "minItems": 2}))
    for seed in range(5):
        text, complete = walk(matcher, seed)
        assert complete
        assert sorted(json.loads(text)) == ["abcdef", "abcxyz"]

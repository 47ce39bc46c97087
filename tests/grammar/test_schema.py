"""What a schema becomes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.grammar.engines import accepts, engine_of, is_taken, one_line
from tgi_async.grammar.grammar import Json
from tgi_async.grammar.schema.document import MAX_IGNORED
from tgi_async.grammar.schema.errors import InvalidSchema, UnsupportedSchema
from tgi_async.grammar.schema.normalize import MAX_CHARACTERS, normalize, parse

DOCS = Path(__file__).parents[2] / "docs" / "grammars.md"

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
    "required": ["value"],
    "additionalProperties": False,
}
SHAPES = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/cat"}},
    "$defs": {
        "cat": {
            "type": "object",
            "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
            "required": ["kind", "lives"],
        },
        "dog": {
            "type": "object",
            "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}},
            "required": ["kind", "name"],
        },
    },
}

FOLLOWED: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "integer"}, [0, -1, 10**15], [1.5, "1", None]),
    ({"type": ["string", "null"]}, ["", None], [1, False]),
    ({"type": "boolean"}, [True, False], [0, None]),
    (True, [None, 1, [], {}, "x"], []),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        [{"a": 1}, {"a": 1, "b": []}],
        [{}, {"a": "x"}, {"b": 1}, []],
    ),
    ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
    (
        {"properties": {"a": True}, "additionalProperties": {"type": "null"}},
        [{"a": 1, "b": None}, 5],
        [{"b": 1}],
    ),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
        [[], [1], [1, "a", "b"]],
        [["a"], [1, 2]],
    ),
    ({"type": "array", "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["한글", "a\n", '""'], ["한", "abcd"]),
    ({"type": "number", "minimum": -1.5, "maximum": 2}, [-1.5, 0, 2, 1.25], [-1.6, 2.1, 30]),
    ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4}, [2, 3], [1, 4]),
    ({"type": "integer", "minimum": 0.5}, [1, 2], [0]),
    ({"type": "integer", "multipleOf": 3}, [0, 3, -6], [1, 4]),
    ({"enum": ["한", 1, 2.5, None, True, [1], {"a": 1}]}, [1, None, [1], {"a": 1}], [2, "x", {}]),
    ({"const": {"a": ["é", None]}}, [{"a": ["é", None]}], [{"a": []}, {}]),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, ["AB-12"], ["AB-", "xAB-1"]),
    ({"type": "string", "pattern": "[0-9]"}, ["a1b", "7"], ["ab"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "2024-13-01", "x"]),
    ({"type": "string", "format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8"]),
    ({"anyOf": [{"type": "integer"}, {"maxLength": 1}]}, [5, "a", None], ["ab"]),
    (
        {"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "null"}}}], "type": "object"},
        [{"a": None}],
        [{}, {"a": 1}, None],
    ),
    ({"allOf": [{"type": "string"}]}, ["x"], [1]),
    (
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
        [{"value": "x"}, {"value": "x", "children": [{"value": "y", "children": []}]}],
        [{"value": "x", "children": [{}]}, {"children": []}],
    ),
    ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "null"}}}, [None], [1]),
    ({"$ref": "#it", "$defs": {"x": {"$anchor": "it", "type": "null"}}}, [None], [1]),
    (
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        [{}, {"next": {"next": {}}}],
        [{"next": 1}, {"other": {}}],
    ),
    (SHAPES, [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": "x"}], [{"kind": "cat"}]),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["x", 1], [None]),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}], "type": "integer"}, [0, 3], [1, 2]),
    (
        {
            "oneOf": [
                {"properties": {"a": {"$ref": "#"}, "k": {"const": 1}}, "required": ["a", "k"]},
                {"properties": {"k": {"const": 2}}, "required": ["k"]},
            ],
            "type": "object",
        },
        [{"k": 2}, {"a": {"k": 2}, "k": 1}],
        [{"k": 1}, {"a": {"k": 1}, "k": 1}],
    ),
    ({"not": {"type": "string"}}, [1, None], ["x"]),
    ({"type": "string", "not": {"enum": ["ab", "a"]}}, ["", "b", "abc", "ac"], ["a", "ab"]),
    ({"type": "object", "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    (
        {
            "properties": {"kind": {"enum": ["a", "b"]}, "x": True},
            "required": ["kind"],
            "type": "object",
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"required": ["x"]},
        },
        [{"kind": "b"}, {"kind": "a", "x": 1}],
        [{"kind": "a"}, {"kind": "c"}],
    ),
    ({"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"propertyNames": {"enum": ["a"]}, "type": "object"}, [{}, {"a": 1}], [{"b": 1}]),
    ({"patternProperties": {"^x": {"type": "null"}}}, [{"xy": None, "a": 1}], [{"xy": 1}]),
    (
        {"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False},
        [{"a": 1}, 3],
        [{"b": 1}],
    ),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, [{"a": 1}], [{}]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [1]], [[1, 1]]),
    (
        {"type": "array", "uniqueItems": True},
        [[], [1, 10, "1"], ["a", "ab", ""], [{"a": 1}, {"a": 2}], [[1], [2], []]],
        [[1, 1], ["a", "b", "a"], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [[], []], [None, None]],
    ),
    (
        {"type": "array", "items": {"enum": ["a", "ab", 1]}, "uniqueItems": True},
        [["ab", "a", 1], [1]],
        [["a", "a"], [1, "ab", 1]],
    ),
    (
        {"properties": {"a": {"uniqueItems": True}}, "type": "object"},
        [{"a": [1, 2], "b": [1, 1]}, {"a": 1}],
        [{"a": [2, 2]}],
    ),
    (
        {"type": "array", "contains": {"type": "integer"}},
        [[1], ["a", 1, None]],
        [[], ["a"], [1.5]],
    ),
    (
        {"contains": {"const": 1}, "minContains": 2, "maxContains": 3, "type": "array"},
        [[1, 1], [2, 1, 1], [1, 1, 2, 1]],
        [[1], [1, 2], [1, 1, 1, 1]],
    ),
    ({"type": "array", "not": {"items": {"type": "string"}}}, [[1], ["a", 1]], [[], ["a"]]),
    ({"type": "number", "not": {"type": "integer"}}, [1.5, -0.25], [1, -3]),
    ({"type": "integer", "not": {"multipleOf": 3}}, [1, 2, -4], [0, 3, -6]),
    ({"type": "string", "not": {"pattern": "a"}}, ["", "b"], ["a", "ba"]),
    ({"type": "string", "pattern": "^a|b$"}, ["ax", "xb"], ["xa", "bx"]),
    ({"type": "string", "pattern": "^(?!a)[a-c]+$"}, ["b", "ca"], ["a", "ab", "d"]),
    ({"type": "string", "pattern": "^(?=.*[0-9]).{2,}$"}, ["a1", "11"], ["1", "aa"]),
    ({"type": "string", "pattern": "\\bcat\\b"}, ["cat", "a cat."], ["cats", "concat"]),
    (
        {"patternProperties": {"^a": {"minimum": 1}, "b$": {"type": "integer"}}, "type": "object"},
        [{"ab": 1}, {"ax": 1.5}, {"xb": -1}, {"x": None}],
        [{"ab": 1.5}, {"ab": -1}, {"xb": "b"}],
    ),
    (
        {"propertyNames": {"pattern": "a", "maxLength": 2}, "type": "object"},
        [{"a": 1}, {"xa": 1}],
        [{"b": 1}, {"xxa": 1}],
    ),
    ({"type": "object", "minProperties": 2}, [{"a": 1, "b": 1}], [{}, {"a": 1}]),
    (
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2},
        [{}, {"a": 1, "c": 1}, {"x": 1}, {"b": 1, "x": 1}],
        [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "x": 1}],
    ),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
        [{"a": 1}, {"b": 1}, {"x": 1}, {"a": 1, "b": 1}],
        [{}],
    ),
    (
        {"type": "object", "not": {"additionalProperties": {"type": "null"}}},
        [{"a": 1}],
        [{}, {"a": None}],
    ),
    ({"not": {"const": {"a": 1}}, "type": "object"}, [{}, {"a": 2}, {"b": 1}], [{"a": 1}]),
    (
        {
            "oneOf": [
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
            ]
        },
        [["a"], [1, 2]],
        [[], ["a", 1]],
    ),
    ({"maximum": 2**70, "type": "integer"}, [5], []),
    ({"maxItems": 5000, "maxLength": 10**9}, [[1], "a"], []),
    ({"properties": {'q"\\\n한': {"type": "null"}}}, [{'q"\\\n한': None}], [{'q"\\\n한': 1}]),
    (
        {"title": "T", "description": "d", "default": 1, "examples": [1], "type": "null"},
        [None],
        [1],
    ),
]


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"), FOLLOWED, ids=lambda it: json.dumps(it, ensure_ascii=False)[:50]
)
def test_values_are_accepted_as_the_schema_says(
    schema: bool | dict[str, Any], valid: Any, invalid: Any
) -> None:
    matcher = engine_of().matcher(Json(normalize(schema)))
    for value in valid:
        assert Draft202012Validator(schema).is_valid(value)
        assert accepts(matcher, one_line(value)), value
    for value in invalid:
        assert not Draft202012Validator(schema).is_valid(value) or "format" in str(schema)
        assert not accepts(matcher, one_line(value)), value


REFUSED: list[tuple[Any, str]] = [
    (
        {"type": "string", "not": {"format": "email"}},
        "keyword `format` at #/not is not supported: under a `not`, `if` or `oneOf`",
    ),
    (
        {"type": "array", "not": {"uniqueItems": True}},
        "keyword `uniqueItems` at #/not is not supported: under a `not`, `if` or `oneOf`",
    ),
    (
        {"type": "array", "contains": {"minimum": 1}, "unevaluatedItems": False},
        "keyword `contains` at # is not supported: together with `unevaluatedItems` it is not "
        "followed",
    ),
    (
        {"propertyNames": {"format": "email"}, "type": "object"},
        "keyword `propertyNames` at # is not supported: formats and some patterns that must not "
        "match are not followed there",
    ),
    (
        {"pattern": "\\Aa\\Z"},
        "keyword `pattern` at # is not supported: `\\A` and `\\Z` are written `^` and `$`",
    ),
    (
        {"pattern": "(?i)[[a]"},
        "keyword `pattern` at # is not supported: it is read in two ways:",
    ),
    ({"$ref": "other.json"}, "`$ref` at # leads to 'other.json', which is not in the schema"),
    ({"$ref": "#"}, "`$ref` at # leads back to itself"),
    ({"allOf": [{"type": "null"}, {"type": "string"}]}, "no value satisfies the schema"),
    ({"enum": []}, "no value satisfies the schema"),
    (
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"},
        "no value satisfies the schema",
    ),
    (
        {"$id": "http://x.y/a", "$dynamicRef": "#b", "$defs": {"b": {"$id": "b"}}},
        "keyword `$dynamicRef` at # is not supported: there is more than one `$id`",
    ),
    (
        {"minimum": 2**63, "type": "integer"},
        "a number beyond 2**53 must be a double within 64 bits",
    ),
    ({"const": 2**60 + 1}, "a number beyond 2**53 must be a double within 64 bits"),
    ({"minLength": 10**9}, "`minLength` at # must be at most 100000. Given: 1000000000"),
    ({"type": "array", "minItems": 5000}, "`minItems` must be at most 1000. Given: 5000"),
]


@pytest.mark.parametrize(("schema", "why"), REFUSED, ids=lambda it: str(it)[:50])
def test_what_cannot_be_followed_is_refused_by_name(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedSchema) as refused:
        normalize(schema)
    assert str(refused.value).startswith(why)


INVALID: list[tuple[Any, str]] = [
    (5, "a schema must be an object or a boolean, at #"),
    ({"items": 5}, "`items` at # must be a schema"),
    (
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "items": []},
        "`items` at # must be a schema",
    ),
    ({"items": [True], "exclusiveMinimum": "1"}, "`exclusiveMinimum` at # must be a number"),
    ({"items": [{"a": 1}, {"type": 1}]}, "`type` at #/items/1 must be one of"),
    ({"type": "int"}, "`type` at # must be one of null, boolean, number, string, array, object"),
    ({"type": []}, "`type` at # must be one of"),
    ({"properties": []}, "`properties` at # must be an object of schemas"),
    ({"properties": {"a": {"required": "a"}}}, "`required` at #/properties/a must be a list of"),
    ({"anyOf": []}, "`anyOf` at # must be a list of schemas"),
    ({"minLength": -1}, "`minLength` at # must be an integer >= 0"),
    ({"minLength": True}, "`minLength` at # must be an integer >= 0"),
    ({"minimum": "1"}, "`minimum` at # must be a number"),
    ({"multipleOf": 0}, "`multipleOf` at # must be a number greater than 0"),
    ({"enum": "a"}, "`enum` at # must be a list"),
    ({"$ref": "#/$defs/x"}, "`$ref` at # leads to '#/$defs/x', where nothing is"),
    ({"$ref": "#/const", "const": 1}, "`$ref` at # leads to '#/const', which is no schema"),
]


@pytest.mark.parametrize(("schema", "why"), INVALID, ids=lambda it: str(it)[:50])
def test_what_is_no_schema_is_reported(schema: dict[str, Any] | int, why: str) -> None:
    with pytest.raises(InvalidSchema) as refused:
        normalize(schema)
    assert str(refused.value).startswith(why)


DRAFT = {
    3: "http://json-schema.org/draft-03/schema#",
    4: "http://json-schema.org/draft-04/schema",
    6: "https://json-schema.org/draft-06/schema#",
    7: "http://json-schema.org/draft-07/schema#",
    2019: "https://json-schema.org/draft/2019-09/schema",
}
OLDER: list[tuple[Any, list[Any], list[Any]]] = [
    ({"items": [{"type": "null"}], "additionalItems": False}, [[], [None]], [[1], [None, 1]]),
    ({"$schema": DRAFT[7], "items": [{"type": "null"}]}, [[None, 1]], [[1]]),
    ({"minimum": 1, "exclusiveMinimum": True}, [2], [1]),
    ({"$schema": DRAFT[4], "maximum": 1, "exclusiveMaximum": False}, [1], [2]),
    (
        {"dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
        [{}, {"b": 1}, {"a": 1, "b": 1}, {"c": 1, "d": 1}],
        [{"a": 1}, {"c": 1}],
    ),
    (
        {"properties": {"a": {"type": "string", "required": True}}, "type": "object"},
        [{"a": "x"}],
        [{}, {"a": 1}],
    ),
    ({"divisibleBy": 2, "type": ["integer", {"type": "null"}]}, [2, None], [1, "x"]),
    ({"extends": {"type": "integer"}, "disallow": [{"maximum": 1}]}, [2], [1, "x"]),
    ({"$schema": DRAFT[3], "type": "any", "format": "host-name"}, [1, "a.b"], ["a..b"]),
    (
        {
            "$schema": DRAFT[7],
            "properties": {"a": {"$ref": "#/definitions/a", "maxLength": 1}},
            "definitions": {"a": {"type": "string"}},
        },
        [{"a": "xy"}],
        [{"a": 1}],
    ),
    (
        {
            "$schema": DRAFT[2019],
            "properties": {"a": {"$ref": "#/$defs/a", "maxLength": 1}},
            "$defs": {"a": {"type": "string"}},
        },
        [{"a": "x"}],
        [{"a": 1}, {"a": "xy"}],
    ),
    (
        {
            "$schema": DRAFT[4],
            "id": "http://example.com/root.json",
            "properties": {"a": {"$ref": "a.json"}, "b": {"$ref": "#b"}},
            "definitions": {
                "a": {"id": "a.json", "type": "null"},
                "b": {"id": "#b", "type": "integer"},
            },
        },
        [{"a": None, "b": 1}],
        [{"a": 1}, {"b": None}],
    ),
    (
        {"properties": {"id": {"type": "null"}, "$ref": {"type": "null"}}},
        [{"$ref": None}],
        [{"id": 1}],
    ),
    ({"$schema": DRAFT[4], "const": 5}, [5], [6]),
    ({"$schema": DRAFT[4], "contains": "a", "type": "null"}, [None], [[]]),
    ({"$schema": DRAFT[6], "contains": {}, "minContains": 0}, [[1]], [[]]),
    ({"$schema": "http://example.com/my-own", "prefixItems": [{"type": "null"}]}, [[None]], [[1]]),
]


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"), OLDER, ids=lambda it: json.dumps(it, ensure_ascii=False)[:50]
)
def test_each_draft_is_read_as_itself(schema: dict[str, Any], valid: Any, invalid: Any) -> None:
    matcher = engine_of().matcher(Json(normalize(schema)))
    for value in valid:
        assert accepts(matcher, one_line(value)), value
    for value in invalid:
        assert not accepts(matcher, one_line(value)), value


def test_what_may_have_been_meant_is_named() -> None:
    ignored: dict[str, None] = {}
    schema = {
        "title": None,
        "type": "object",
        "x-order": 1,
        "properties": {
            "a": {"type": "string", "nullable": True, "maxLenght": 3, "format": "phone"},
            "b": {"type": "integer", "format": "int32", "readOnly": "yes", "links": []},
            "c": {"type": "string", "format": "password"},
        },
    }
    matcher = engine_of().matcher(Json(normalize(schema, ignored)))
    assert accepts(matcher, '{"a": "long", "b": 1}')
    assert not accepts(matcher, '{"a": null}')
    assert list(ignored) == ["nullable", "maxLenght", "format:phone"]
    ignored.clear()
    normalize({f"word{index}": 1 for index in range(100)}, ignored)
    assert len(ignored) == MAX_IGNORED


def test_only_what_is_reached_is_refused() -> None:
    unused = {"$defs": {"unused": {"pattern": "\\A"}}, "type": "null"}
    assert normalize(unused) == {"type": "null"}


def test_a_text_is_read_as_json_is() -> None:
    assert parse('{"type": "null"}') == {"type": "null"}
    for text in ("{", '{"a": NaN}', "\ud800", '{"a": 1e999}'):
        with pytest.raises(InvalidSchema, match="it is not JSON"):
            parse(text)
    with pytest.raises(UnsupportedSchema, match="nested too deep"):
        parse("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UnsupportedSchema, match=f"at most {MAX_CHARACTERS} characters"):
        parse(" " * (MAX_CHARACTERS + 1))


def test_nesting_is_bounded() -> None:
    schema: Any = True
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(UnsupportedSchema, match="nested too deep"):
        normalize(schema)


def test_every_refusal_is_in_the_docs() -> None:
    docs = " ".join(DOCS.read_text().split())
    for _, why in REFUSED:
        if why.startswith("keyword"):
            keyword, reason = why.split("`")[1], why.partition(" is not supported: ")[2]
            assert f"`{keyword}`" in docs
            assert reason.rpartition("; ")[2][:38].rstrip(":") in docs


def test_options_that_are_distinguished_by_one_property_need_no_complement() -> None:
    options = [
        {
            "type": "object",
            "properties": {"kind": {"const": f"k{i}"}, "value": {"type": "string"}},
            "required": ["kind"],
        }
        for i in range(150)
    ]
    normal = normalize({"oneOf": options})
    assert isinstance(normal, dict)
    assert len(normal["anyOf"]) == 150
    assert "not" not in json.dumps(normal)


def test_a_long_chain_of_conditions_on_one_property_is_followed() -> None:
    kinds = [f"k{i}" for i in range(20)]
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": kinds}},
        "required": ["kind"],
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}},
                "then": {"properties": {"value": {"const": kind}}, "required": ["value"]},
            }
            for kind in kinds
        ],
    }
    matcher = engine_of().matcher(Json(normalize(schema)))
    for kind in kinds:
        assert is_taken(matcher, {"kind": kind, "value": kind})
        assert not is_taken(matcher, {"kind": kind, "value": "k"})
        assert not is_taken(matcher, {"kind": kind})


def test_dependencies_that_agree_are_not_multiplied() -> None:
    schema = {
        "type": "object",
        "properties": {"type": {"enum": ["a", "b"]}},
        "dependentSchemas": {
            f"p{i}": {"properties": {"type": {"const": "ab"[i % 2]}}} for i in range(16)
        },
    }
    matcher = engine_of().matcher(Json(normalize(schema)))
    assert is_taken(matcher, {"type": "a", "p0": 1, "p2": 1})
    assert not is_taken(matcher, {"type": "a", "p1": 1})


def test_of_too_many_alternatives_some_are_written_and_only_valid_ones() -> None:
    pairs = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(12)]
    schema = {"type": "object", "allOf": pairs}
    matcher = engine_of().matcher(Json(normalize(schema)))
    assert is_taken(matcher, {f"a{i}": 0 for i in range(12)})
    assert not is_taken(matcher, {f"a{i}": 0 for i in range(11)})


def test_what_is_left_out_of_one_option_is_not_taken_for_the_others() -> None:
    pairs = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(12)]
    every_b = {f"b{i}": 0 for i in range(12)}
    schema = {
        "oneOf": [
            {"type": "object", "allOf": pairs},
            {"type": "object", "required": list(every_b)},
        ]
    }
    matcher = engine_of().matcher(Json(normalize(schema)))
    assert not is_taken(matcher, every_b)


NUMBERS: list[tuple[Any, list[int], list[int]]] = [
    ({"maximum": 2**63 - 1}, [2**63 - 1, -(2**63)], [2**63]),
    ({"minimum": -(2**63), "maximum": 2**63 - 1}, [2**63 - 1, -(2**63) + 1024], [2**63]),
    ({"minimum": 2**60 + 1}, [2**60 + 256, 2**62], [2**60]),
    ({"exclusiveMaximum": 2**60}, [0, 2**60 - 128], [2**60]),
    ({"minimum": 0, "maximum": 2**64 - 1}, [0, 2**63 - 1], [-1, 2**64]),
    ({"multipleOf": 10**9}, [0, 10**9, -(10**10)], [1, 10**9 + 1]),
    ({"const": 2**60}, [2**60], [2**60 + 1]),
]


@pytest.mark.parametrize(("bounds", "good", "bad"), NUMBERS, ids=lambda it: str(it)[:40])
def test_bounds_of_integers_hold_up_to_64_bits(
    bounds: dict[str, Any], good: list[int], bad: list[int]
) -> None:
    matcher = engine_of().matcher(Json(normalize({"type": "integer", **bounds})))
    assert all(accepts(matcher, str(number)) for number in good)
    assert not any(accepts(matcher, str(number)) for number in bad)


AHEAD: list[tuple[str, list[str], list[str]]] = [
    (r"^(?!.*\bnative\b)[a-z]+(\.[a-z]+)+$", ["a.b", "a.natives"], ["native.x", "a.native"]),
    (r"^(?!^a\.|b\.).*$", ["a", "xa."], ["a.x", "b.x"]),
    (r"^(?=.{1,200}$)[a-z](?:[a-z-]{0,61}[a-z])?(?:\.[a-z]+)*$", ["a.b"], ["a" * 201, "-"]),
    (r"^[^\<\>]+$", ["ab"], ["a<"]),
    (r"^(?!b)[a-z<>]+$", ["a<b>"], ["b", "a-"]),
]


@pytest.mark.parametrize(("pattern", "good", "bad"), AHEAD, ids=lambda it: str(it)[:40])
def test_patterns_that_look_ahead_at_anchors_are_followed(
    pattern: str, good: list[str], bad: list[str]
) -> None:
    matcher = engine_of().matcher(Json(normalize({"type": "string", "pattern": pattern})))
    assert all(accepts(matcher, json.dumps(text)) for text in good)
    assert not any(accepts(matcher, json.dumps(text)) for text in bad)


def test_what_is_no_schema_under_a_keyword_of_a_later_draft_is_passed_over() -> None:
    draft = "http://json-schema.org/draft-07/schema#"
    schema = {
        "$schema": draft,
        "$defs": {"description": "notes", "a": {"const": 1}},
        "$ref": "#/$defs/a",
    }
    matcher = engine_of().matcher(Json(normalize(schema)))
    assert accepts(matcher, "1")
    assert not accepts(matcher, "2")

"""Expressions and what makes them: which texts they have, and how short the shortest is."""

from __future__ import annotations

import json

import pytest

from tests.grammar.engines import accepts, engine_of
from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar, Json, Regex
from tgi_async.grammar.schema.normalize import normalize
from workers.constraints.expressions import ENDLESS, Expressions
from workers.constraints.formats import FORMATS
from workers.constraints.language import language
from workers.constraints.nodes import Expression, TooComplex
from workers.constraints.patterns import matching, searching


def has(expressions: Expressions, node: Expression, text: str) -> bool:
    for byte in text.encode():
        node = expressions.after(node, byte)
    return node.nullable


def shortest(grammar: Grammar) -> str:
    expressions = Expressions()
    node = language(expressions, grammar, lambda name: None)
    text = bytes(expressions.least(node)).decode()
    assert len(text.encode()) == expressions.cost(node)
    assert has(expressions, node, text)
    return text


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (r"[a-zA-Z0-9|]+@[a-z]+\.com", 7),
        ("(abc|d)+z", 2),
        ("(a{2,}|b{7})c", 3),
        ("(a|b)*a(a|b){20}", 21),
        ("(.{1,500}x){2,500}", 4),
        ("[가-힣]{2}", 6),
        ("(?i)h\u00e9llo", 6),
        (r"\p{Lu}\d\D\x41\u{e9}", 6),
        ("(a{1,1000}){1,1000}", 1),
        ("|x", 0),
    ],
)
def test_the_shortest_match_is_found(pattern: str, length: int) -> None:
    assert len(shortest(Regex(pattern)).encode()) == length


@pytest.mark.parametrize(
    "pattern", [r"\bx", "(?=a)b", "a^b", "[a&&b]", "x{a}", "(", r"\1", "(?x) a"]
)
def test_what_is_not_read_is_given_up(pattern: str) -> None:
    with pytest.raises(TooComplex):
        matching(Expressions(), pattern)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("b", ["b", "abc"], ["", "ac"]),
        ("^b", ["b", "bc"], ["ab"]),
        ("b$", ["b", "ab"], ["ba"]),
        ("^a|b$", ["ax", "xb"], ["xa"]),
        ("^(a|b)$", ["a", "b"], ["ab"]),
        ("(^a|b)c", ["ac", "xbc"], ["xac"]),
        ("^(?s:.{0,2})$", ["", "\n\n"], ["abc"]),
    ],
)
def test_a_pattern_of_a_schema_may_match_anywhere(
    pattern: str, good: list[str], bad: list[str]
) -> None:
    expressions = Expressions()
    node = searching(expressions, pattern)
    assert [has(expressions, node, text) for text in good + bad] == [True] * len(good) + [
        False
    ] * len(bad)


SCHEMAS = [
    ({"type": "integer", "multipleOf": 1013, "minimum": 5000}, "5065"),
    ({"type": "number", "exclusiveMinimum": 2.25, "maximum": 2.5}, "2.3"),
    ({"type": "number", "multipleOf": 0.05, "minimum": -3.01, "maximum": -2.91}, "-3"),
    ({"type": "string", "minLength": 5, "pattern": "^a+b"}, '"aaaab"'),
    ({"type": "string", "pattern": "[\n\x7f]"}, r'"\n"'),
    ({"type": "object", "properties": {"": True}, "required": [""], "minProperties": 2}, None),
    ({"type": "array", "minItems": 2, "prefixItems": [{"const": "a"}], "items": {}}, '["a", 0]'),
    ({"type": "object", "additionalProperties": {"enum": [12]}, "minProperties": 1}, '{"": 12}'),
    (
        {
            "$defs": {
                "a": {
                    "anyOf": [
                        {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1},
                        {"const": "end"},
                    ]
                }
            },
            "$ref": "#/$defs/a",
        },
        '"end"',
    ),
    ({"properties": {f"p{i}": {"type": "integer"} for i in range(400)}, "type": "object"}, "{}"),
    *(({"type": "string", "format": name}, None) for name in FORMATS),
]


@pytest.mark.parametrize(("schema", "text"), SCHEMAS, ids=lambda one: str(one)[:40])
def test_the_shortest_value_is_found_and_the_engine_takes_it(
    schema: dict[str, object], text: str | None
) -> None:
    grammar = Json(normalize(schema))
    found = shortest(grammar)
    assert text is None or found == text
    assert accepts(engine_of().matcher(grammar), found)
    json.loads(found)


def test_intersections_have_the_shortest_text_of_both() -> None:
    expressions = Expressions()
    node = expressions.both([matching(expressions, "(aa)*"), matching(expressions, "a(aaa)*")])
    assert bytes(expressions.least(node)) == b"aaaa"
    never = expressions.both([matching(expressions, "a+"), matching(expressions, "b+")])
    assert expressions.cost(never) >= ENDLESS


def test_many_constants_are_as_few_are() -> None:
    words = [f"w{n}" for n in range(0, 3000, 7)] + ["w", "é", "한국"]
    expressions = Expressions()
    node = language(expressions, Json({"enum": words}), lambda name: None)
    assert all(has(expressions, node, f'"{word}"') for word in words)
    assert not any(has(expressions, node, text) for text in ('"w1"', '"w', '"w7"w', '""'))
    assert bytes(expressions.least(node)) == b'"w"'
    after = node
    for byte in b'"w70':
        after = expressions.after(after, byte)
    assert bytes(expressions.least(after)) == b'"'
    choice = terms.Choice([terms.Text(word) for word in words])
    assert shortest(choice) == "w"


def test_prose_ends_at_the_first_end() -> None:
    expressions = Expressions()
    node = language(expressions, terms.Prose("</t>"), lambda name: None)
    assert has(expressions, node, "한<</</t>")
    assert not has(expressions, node, "</t></t>")


def test_what_may_have_been_meant_in_too_many_ways_is_given_up() -> None:
    expressions = Expressions()
    node = matching(expressions, "(.{1,500}x){1,500}")
    expressions.begin()
    with pytest.raises(TooComplex):
        has(expressions, node, "x" * 500)


@pytest.mark.parametrize(
    "pattern", ["[a-z ]{30}", "(.|\n){3,7}x", "(a|ab){4}", "(ab?){2,}", "(a|b)*c{5}", "a{3}b"]
)
def test_a_text_leads_where_its_bytes_lead_one_by_one(pattern: str) -> None:
    expressions = Expressions()
    node = matching(expressions, pattern)
    for text in ("a", "aaa", "ab가b", "aaab", "abababab", "ccccc", "b" * 40):
        after = node
        for byte in text.encode():
            after = expressions.after(after, byte)
        assert expressions.after_text(node, text.encode()) is after
        for _ in range(3):  # and it is the same where all that may follow is known
            expressions.steps(node)
            assert expressions.after_text(node, text.encode()) is after

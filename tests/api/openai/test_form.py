"""What a text is held to, by whichever field says so, on both OpenAI routes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.conftest import Api, Ask, refusal
from tests.doubles.fake_engine import FakeEngine
from tgi_async.grammar.grammar import (
    Choice,
    ContextFree,
    Json,
    Prose,
    Regex,
    Repeat,
    Sequence,
    Tag,
    Tagged,
    Text,
    decode,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHOICES = ["yes", "no"]
CHOICE = Choice([Text("yes"), Text("no")])
EBNF = 'root ::= "a" [0-9]+'
LARK = 'start: "a" /[0-9]+/'
LEGACY = {
    "structures": [{"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f="],
}
TAGGED = Tagged([Tag("<f=", "<f=a>", Json(SCHEMA), "</f>")])


@pytest.fixture(params=["chat", "complete"])
def ask(api: Api, request: pytest.FixtureRequest) -> Ask:
    """One of the routes."""
    return api.chat if request.param == "chat" else api.complete


FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"guided_json": SCHEMA}, Json(SCHEMA)),
    ({"guided_json": json.dumps(SCHEMA)}, Json(SCHEMA)),
    ({"json_schema": SCHEMA}, Json(SCHEMA)),
    ({"guided_regex": "a+"}, Regex("a+")),
    ({"regex": "a+"}, Regex("a+")),
    ({"guided_choice": CHOICES}, CHOICE),
    ({"guided_choice": ["yes", "yes", "no"]}, CHOICE),
    *(({name: EBNF}, ContextFree(EBNF)) for name in ("guided_grammar", "grammar", "ebnf")),
    ({"guided_grammar": LARK}, ContextFree(LARK)),
    ({"grammar": {"type": "regex", "value": "a+"}}, Regex("a+")),
    ({"structured_outputs": {"json": SCHEMA}}, Json(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, Json(SCHEMA)),
    ({"structured_outputs": {"regex": "a+"}}, Regex("a+")),
    ({"structured_outputs": {"choice": CHOICES}}, CHOICE),
    ({"structured_outputs": {"grammar": EBNF}}, ContextFree(EBNF)),
    ({"structured_outputs": {"json_object": True}}, Json({"type": "object"})),
    ({"structured_outputs": {"structural_tag": json.dumps(LEGACY)}}, TAGGED),
    ({"structural_tag": LEGACY}, TAGGED),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
        Json({**SCHEMA, "additionalProperties": False}),
    ),
    (
        {
            "structured_outputs": {
                "json": SCHEMA,
                "whitespace_pattern": "[ ]?",
                "disable_any_whitespace": True,
            }
        },
        Json(SCHEMA),
    ),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": r"\s*"}, Json(SCHEMA)),
    ({"response_format": {"type": "json_object"}}, Json({"type": "object"})),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Json(SCHEMA)),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Json(SCHEMA)),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "description": "y", "schema": SCHEMA},
            }
        },
        Json(SCHEMA),
    ),
    ({"response_format": {"type": "regex", "pattern": "a+"}}, Regex("a+")),
    ({"response_format": {"type": "grammar", "grammar": LARK}}, ContextFree(LARK)),
    ({"response_format": {"type": "structural_tag", **LEGACY}}, TAGGED),
    (
        {
            "response_format": {
                "type": "structural_tag",
                "format": {"type": "regex", "pattern": "a"},
            }
        },
        Regex("a"),
    ),
    ({"response_format": {"type": "text"}, "guided_regex": "a+"}, Regex("a+")),
]


async def test_each_field_says_what_the_text_is_held_to(ask: Ask, engine: FakeEngine) -> None:
    for fields, term in FORMS:
        response = await ask("Hi", **fields)
        assert response.status_code == 200, (fields, response.text)
        assert decode(engine.requests[-1].grammar) == term, fields
        assert "x-tgi-ignored" not in response.headers


async def test_what_asks_for_nothing_leaves_the_text_free(ask: Ask, engine: FakeEngine) -> None:
    nothing: list[dict[str, Any]] = [
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
        {"guided_decoding_backend": "xgrammar", "guided_whitespace_pattern": "x"},
    ]
    for fields in nothing:
        assert (await ask("Hi", **fields)).status_code == 200
        assert engine.requests[-1].grammar == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"guided_json": SCHEMA, "response_format": {"type": "json_object"}},
            "`response_format` and `guided_json` exclude each other: a text follows one "
            "grammar. Send one of them",
        ),
        (
            {"guided_regex": "a", "structured_outputs": {"choice": ["a"]}},
            "`structured_outputs.choice` and `guided_regex` exclude each other: a text follows "
            "one grammar. Send one of them",
        ),
        (
            {"structured_outputs": {"regex": "a", "json_object": True}},
            "`structured_outputs.json_object` and `structured_outputs.regex` exclude each other: a "
            "text follows one grammar. Send one of them",
        ),
        ({"guided_choice": []}, "`guided_choice` must have at least one text to choose"),
        ({"guided_grammar": " "}, "`guided_grammar` must be a grammar. Given: an empty text"),
        (
            {"guided_regex": "a("},
            "`guided_regex`: unclosed group, at '(' (character 2)",
        ),
        (
            {"structured_outputs": {"json": {"type": "int"}}},
            "`structured_outputs.json`: `type` at # must be one of null, boolean, number, string, "
            "array, object, integer, or a list of different ones",
        ),
        (
            {"structured_outputs": {"json": "{", "disable_additional_properties": True}},
            "`structured_outputs.json`: it is not JSON: Input data was truncated",
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "\n+"}},
            "`structured_outputs.whitespace_pattern` is not supported, but for patterns that allow "
            "no white space and a single space, such as '[ ]?'. Given: '\\n+'",
        ),
        (
            {"structured_outputs": {"structural_tag": {"type": "structural_tag"}}},
            "`structured_outputs.structural_tag`: it must have a `format`, or `structures` and "
            "`triggers`",
        ),
    ],
)
async def test_what_is_wrong_is_reported_by_the_name_of_the_field(
    ask: Ask, engine: FakeEngine, fields: dict[str, Any], message: str
) -> None:
    response = await ask("Hi", **fields)
    assert refusal(response) == f"Input validation error: {message}"
    assert engine.requests == []


async def test_a_grammar_that_cannot_be_read_is_reported_with_its_place(ask: Ask) -> None:
    for grammar, reported in (("root ::= (", "the EBNF cannot be read"), ("start: nope", "nope")):
        response = await ask("Hi", guided_grammar=grammar)
        assert refusal(response).startswith("Input validation error: `guided_grammar`: ")
        assert reported in refusal(response)


@pytest.mark.parametrize("checker", [None])
async def test_without_grammars_the_field_is_refused_by_name(ask: Ask) -> None:
    response = await ask("Hi", guided_choice=["a"])
    assert refusal(response) == (
        "Input validation error: `guided_choice` is not supported: the server was started with "
        "--disable-grammar-support. Remove it from the request"
    )


class TestStructuralTags:
    @pytest.mark.parametrize(
        ("given", "term"),
        [
            ({"type": "const_string", "value": "a"}, Text("a")),
            ({"type": "json_schema", "json_schema": SCHEMA}, Json(SCHEMA)),
            ({"type": "any_text"}, Regex("(?s:.*)")),
            ({"type": "regex", "pattern": "a"}, Regex("a")),
            ({"type": "grammar", "grammar": EBNF}, ContextFree(EBNF)),
            ({"type": "grammar", "grammar": LARK, "syntax": "lark"}, ContextFree(LARK)),
            (
                {
                    "type": "sequence",
                    "elements": [
                        {"type": "any_text"},
                        {"type": "const_string", "value": "END"},
                        {"type": "regex", "pattern": "a"},
                    ],
                },
                Sequence([Prose("END"), Regex("a")]),
            ),
            (
                {"type": "or", "elements": [{"type": "const_string", "value": "a"}] * 2},
                Choice([Text("a"), Text("a")]),
            ),
            (
                {"type": "plus", "content": {"type": "optional", "content": {"type": "any_text"}}},
                Repeat(Repeat(Regex("(?s:.*)"), 0, 1), 1),
            ),
            (
                {
                    "type": "tag",
                    "begin": "<think>",
                    "content": {"type": "any_text"},
                    "end": "</think>",
                },
                Sequence([Text("<think>"), Prose("</think>")]),
            ),
            (
                {
                    "type": "triggered_tags",
                    "triggers": ["<f="],
                    "tags": [
                        {
                            "type": "tag",
                            "begin": "<f=a>",
                            "content": {"type": "json_schema", "json_schema": SCHEMA},
                            "end": "</f>",
                        }
                    ],
                    "at_least_one": True,
                    "stop_after_first": True,
                },
                Tagged(TAGGED.tags, begins=True, ends=True),
            ),
            (
                {
                    "type": "tags_with_separator",
                    "separator": ", ",
                    "tags": [
                        {
                            "type": "tag",
                            "begin": "[",
                            "content": {"type": "regex", "pattern": "a"},
                            "end": "]",
                        }
                    ],
                    "at_least_one": True,
                },
                Repeat(Choice([Sequence([Text("["), Regex("a"), Text("]")])]), 1, None, ", "),
            ),
        ],
    )
    async def test_formats(
        self, api: Api, engine: FakeEngine, given: dict[str, Any], term: Any
    ) -> None:
        response = await api.complete("Hi", structural_tag={"format": given})
        assert response.status_code == 200, response.text
        assert decode(engine.requests[-1].grammar) == term

    @pytest.mark.parametrize(
        ("given", "reported"),
        [
            ("{", "Input data was truncated"),
            (
                {"format": {"type": "token", "token": 5}},
                "Invalid value 'token' - at `$.format.type`",
            ),
            (
                {"format": {"type": "any_text", "max_chars": 3}},
                "Object contains unknown field `max_chars` - at `$.format`",
            ),
            ({"format": {"type": "any_text", "excludes": ["x"]}}, "`excludes` is not supported"),
            (
                {"format": {"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}},
                "`style` must be json. Given: 'qwen_xml'",
            ),
            (
                {**LEGACY, "triggers": ["<g="]},
                "a tag must begin with exactly one of the triggers. Given: '<f=a>'",
            ),
            ({"format": {"type": "grammar", "grammar": LARK}}, "`grammar` must be EBNF"),
        ],
    )
    async def test_what_cannot_be_followed_is_reported(
        self, api: Api, given: dict[str, Any] | str, reported: str
    ) -> None:
        response = await api.complete("Hi", structural_tag=given)
        assert refusal(response).startswith("Input validation error: `structural_tag`: ")
        assert reported in refusal(response)

    async def test_nothing_is_nested_without_end(self, api: Api) -> None:
        deep: dict[str, Any] = {"type": "any_text"}
        for _ in range(60):
            deep = {"type": "star", "content": deep}
        response = await api.complete("Hi", structural_tag={"format": deep})
        assert "nested too deep" in refusal(response)

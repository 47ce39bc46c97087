"""What a `grammar` and a `response_format` may be, and what comes of the latter."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.api.conftest import Api, EventsOf, refusal
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api.grammar.schema import (
    Grammar,
    JsonGrammar,
    JsonObjectGrammar,
    JsonSchemaConfig,
    JsonSchemaGrammar,
    RegexGrammar,
    ResponseFormat,
    grammar_of,
)
from tgi_async.grammar.grammar import Json, Regex, encode

SCHEMA = {"properties": {"a": {"type": "integer"}}}
SHOWN = {"type": "object", **SCHEMA}
"""What names properties is meant for objects."""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"type": "json", "value": SCHEMA}, JsonGrammar(SCHEMA)),
        ({"type": "json", "value": "{}"}, JsonGrammar("{}")),
        ({"type": "json_object", "value": SCHEMA}, JsonObjectGrammar(SCHEMA)),
        ({"type": "regex", "value": "a+"}, RegexGrammar("a+")),
        (
            {"type": "json_schema", "value": {"name": "it", "schema": SCHEMA}},
            JsonSchemaGrammar(JsonSchemaConfig(schema=SCHEMA, name="it")),
        ),
    ],
)
def test_grammars(given: dict[str, Any], found: Any) -> None:
    assert msgspec.convert(given, Grammar) == found


CONFIG = {"name": "it", "schema": SCHEMA, "strict": True}


@pytest.mark.parametrize(
    ("given", "grammar"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonGrammar({"type": "object"})),
        ({"type": "json_object", "value": SCHEMA}, JsonGrammar(SCHEMA)),
        ({"type": "json", "value": SCHEMA}, JsonGrammar(SCHEMA)),
        ({"type": "regex", "value": "a+"}, RegexGrammar("a+")),
        *(
            (
                {"type": "json_schema", field: CONFIG},
                JsonSchemaGrammar(JsonSchemaConfig(schema=SCHEMA, name="it", strict=True)),
            )
            for field in ("json_schema", "value")
        ),
    ],
)
def test_response_formats_are_openais_and_tgis(
    given: dict[str, Any] | None, grammar: JsonGrammar | JsonSchemaGrammar | RegexGrammar | None
) -> None:
    assert grammar_of(msgspec.convert(given, ResponseFormat | None)) == grammar


MALFORMED = [
    ({}, "{field}: Object missing required field `type`"),
    ("json", "{field}: Expected `object | null`, got `str`"),
    ({"type": "xml", "value": ""}, "{field}.type: Invalid value 'xml'"),
    ({"type": "json"}, "{field}: Object missing required field `value`"),
    ({"type": "regex", "value": {}}, "{field}.value: Expected `str`, got `object`"),
    (
        {"type": "json_schema", "value": {"name": "it"}},
        "{field}.value: Object missing required field `schema`",
    ),
]


PREFIX = "Failed to deserialize the JSON body into the target type: "


class TestMalformed:
    @pytest.mark.parametrize(("grammar", "reported"), MALFORMED)
    async def test_grammars_are_reported(
        self, api: Api, grammar: dict[str, Any] | str, reported: str
    ) -> None:
        response = await api.generate(grammar=grammar)
        assert response.status_code == 422
        assert response.text == PREFIX + reported.format(field="parameters.grammar")

    @pytest.mark.parametrize(
        ("wanted", "reported"),
        [
            *MALFORMED,
            ({"type": "json_schema"}, "{field}: Object missing required field `json_schema`"),
            (
                {"type": "json_schema", "json_schema": {"name": "it"}},
                "{field}.json_schema: Object missing required field `schema`",
            ),
        ],
    )
    async def test_response_formats_are_reported(
        self, api: Api, wanted: dict[str, Any] | str, reported: str
    ) -> None:
        response = await api.chat(response_format=wanted)
        assert refusal(response) == PREFIX + reported.format(field="response_format")


def encoded(schema: object) -> str:
    return encode(Json(schema))


OBJECT = {"type": "object"}


class TestChecked:
    """What reaches the engine is what was checked."""

    @pytest.mark.parametrize(
        ("grammar", "checked"),
        [
            ({"type": "json", "value": SCHEMA}, encoded(SHOWN)),
            ({"type": "json", "value": '{"type": "object"}'}, encoded(OBJECT)),
            ({"type": "json_object", "value": {"allOf": [OBJECT]}}, encoded(OBJECT)),
            ({"type": "json_schema", "value": {"schema": OBJECT}}, encoded(OBJECT)),
            ({"type": "json", "value": True}, encoded(True)),
            ({"type": "regex", "value": "a+"}, encode(Regex("a+"))),
        ],
    )
    async def test_grammars(
        self, api: Api, engine: FakeEngine, grammar: dict[str, Any], checked: str
    ) -> None:
        for send in (api.generate, api.generate_stream):
            assert (await send(grammar=grammar)).status_code == 200
            assert engine.requests.pop().grammar == checked

    @pytest.mark.parametrize(
        ("wanted", "checked"),
        [
            (None, ""),
            ({"type": "text"}, ""),
            ({"type": "json_object"}, encoded(OBJECT)),
            (
                {"type": "json_schema", "json_schema": {"name": "it", "schema": OBJECT}},
                encoded(OBJECT),
            ),
            ({"type": "regex", "value": "a+"}, encode(Regex("a+"))),
        ],
    )
    async def test_response_formats(
        self, api: Api, engine: FakeEngine, wanted: dict[str, Any] | None, checked: str
    ) -> None:
        for stream in (False, True):
            response = await api.chat(response_format=wanted, stream=stream)
            assert response.status_code == 200
            assert engine.requests.pop().grammar == checked

    async def test_what_a_schema_says_in_vain_is_named(self, api: Api) -> None:
        schema = {"type": "string", "nullable": True, "x-y": 1, "format": "phone number"}
        for send, field in ((api.generate, "grammar"), (api.chat, "response_format")):
            response = await send("Hi", **{field: {"type": "json", "value": schema}})
            assert response.headers["x-tgi-ignored"] == (
                f"{field}.nullable, {field}.format:phone?number"
            )

    async def test_several_choices_have_the_same(self, api: Api, engine: FakeEngine) -> None:
        await api.generate(grammar={"type": "regex", "value": "a"}, best_of=2, do_sample=True)
        assert [request.grammar for request in engine.requests] == [encode(Regex("a"))] * 2

    @pytest.mark.parametrize(
        ("grammar", "reported"),
        [
            (
                {"type": "json", "value": {"properties": {"a": {"pattern": "\\A"}}}},
                "keyword `pattern` at #/properties/a is not supported: `\\A` and `\\Z` are written",
            ),
            ({"type": "json", "value": "{"}, "it is not JSON: "),
            ({"type": "json", "value": 7}, "a schema must be an object or a boolean, at #"),
            ({"type": "json_schema", "value": {"schema": []}}, "a schema must be an object or a"),
            ({"type": "regex", "value": "[z-a]"}, "invalid character class range, the start must"),
        ],
    )
    async def test_a_refusal_names_the_field_and_the_place(
        self, api: Api, engine: FakeEngine, grammar: dict[str, Any], reported: str
    ) -> None:
        for send, field in ((api.generate, "grammar"), (api.chat, "response_format")):
            response = await send("Hi", **{field: grammar})
            error = refusal(response) if send == api.chat else response.json()["error"]
            assert error.startswith(f"Input validation error: `{field}`: {reported}")
        assert engine.requests == []

    async def test_a_refusal_of_a_stream_is_an_event(self, api: Api, events: EventsOf) -> None:
        response = await api.generate_stream(grammar={"type": "regex", "value": "a("})
        [reported] = events(response)
        assert reported["error_type"] == "validation"
        assert "unclosed group" in reported["error"]

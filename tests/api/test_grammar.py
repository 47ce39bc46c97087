"""What a `grammar` and a `response_format` may be, and what comes of the latter."""

from __future__ import annotations

import msgspec
import pytest

from tgi_async.api.schemas.grammar import (
    Grammar,
    JsonGrammar,
    JsonObjectGrammar,
    JsonSchemaConfig,
    JsonSchemaGrammar,
    RegexGrammar,
    ResponseFormat,
    grammar_of,
)

SCHEMA = {"properties": {"a": {"type": "integer"}}}


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
def test_grammars(given, found):
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
def test_response_formats_are_openais_and_tgis(given, grammar):
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


class TestMalformed:
    @pytest.mark.parametrize(("grammar", "told"), MALFORMED)
    async def test_grammars_are_told(self, api, grammar, told):
        self.is_told(await api.generate(grammar=grammar), told, "parameters.grammar")

    @pytest.mark.parametrize(
        ("wanted", "told"),
        [
            *MALFORMED,
            ({"type": "json_schema"}, "{field}: Object missing required field `json_schema`"),
            (
                {"type": "json_schema", "json_schema": {"name": "it"}},
                "{field}.json_schema: Object missing required field `schema`",
            ),
        ],
    )
    async def test_response_formats_are_told(self, api, wanted, told):
        self.is_told(await api.chat(response_format=wanted), told, "response_format")

    @staticmethod
    def is_told(response, told, field):
        assert response.status_code == 422
        prefix = "Failed to deserialize the JSON body into the target type: "
        assert response.text == prefix + told.format(field=field)

"""What constrains a text: `grammar` of `/generate`, `response_format` of the chat route.

Both are told apart by their `type`. TGI has the rest in `value`, and the same forms in both places;
OpenAI's chat has `json_schema` beside `type`, or nothing.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType


class JsonSchemaConfig(Struct, frozen=True, kw_only=True):
    """A JSON Schema with a name. `strict` is OpenAI's, and ignored by TGI."""

    schema: Any
    name: str | None = None
    strict: bool | None = None


class JsonGrammar(Struct, frozen=True, tag_field="type", tag="json"):
    """`value` is a JSON Schema, or a text that holds one."""

    value: Any


class JsonObjectGrammar(JsonGrammar, frozen=True, tag="json_object"):
    """TGI's other name for the same."""


class RegexGrammar(Struct, frozen=True, tag_field="type", tag="regex"):
    value: str


class JsonSchemaGrammar(Struct, frozen=True, tag_field="type", tag="json_schema"):
    value: JsonSchemaConfig


Grammar = JsonGrammar | JsonObjectGrammar | RegexGrammar | JsonSchemaGrammar


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """OpenAI's word for no constraint."""


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """`value` is TGI's; without it, as at OpenAI, any object will do."""

    value: Any = UNSET


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """The schema is in OpenAI's `json_schema`, or in TGI's `value`."""

    json_schema: JsonSchemaConfig | UnsetType = UNSET
    value: JsonSchemaConfig | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.json_schema is UNSET and self.value is UNSET:
            raise ValueError("Object missing required field `json_schema`")


ResponseFormat = TextFormat | JsonGrammar | JsonObjectFormat | RegexGrammar | JsonSchemaFormat


def grammar_of(wanted: ResponseFormat | None) -> Grammar | None:
    """The constraint of a response format, if it is one."""
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if isinstance(wanted, JsonObjectFormat):
        return JsonGrammar({"type": "object"} if wanted.value is UNSET else wanted.value)
    if isinstance(wanted, JsonSchemaFormat):
        config = wanted.value if wanted.json_schema is UNSET else wanted.json_schema
        assert config is not UNSET
        return JsonSchemaGrammar(config)
    return wanted

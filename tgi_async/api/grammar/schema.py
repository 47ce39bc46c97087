"""Grammars in bodies: `grammar` of `/generate`, `response_format` of the OpenAI routes.

The `type` says which it is. TGI has the rest in `value`, and the same forms in both places.
OpenAI's have `json_schema` beside `type`, or nothing; other servers have names of their own.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, structs


class JsonSchemaConfig(Struct, frozen=True, kw_only=True):
    """A JSON Schema with a name. `strict` and `description` are OpenAI's, and ignored by TGI."""

    schema: Any
    name: str | None = None
    description: str | None = None
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


class ChoiceGrammar(Struct, frozen=True, tag_field="type", tag="choice"):
    """`value` are texts; the output is one of them."""

    value: list[str]


class ContextFreeGrammar(Struct, frozen=True, tag_field="type", tag="grammar"):
    """`value` is a context-free grammar, in EBNF or in Lark."""

    value: str


class TagGrammar(Struct, frozen=True, tag_field="type", tag="structural_tag"):
    """`value` is a structural tag of xgrammar's, or a text that holds one."""

    value: Any


Grammar = (
    JsonGrammar
    | JsonObjectGrammar
    | RegexGrammar
    | JsonSchemaGrammar
    | ChoiceGrammar
    | ContextFreeGrammar
    | TagGrammar
)
"""The grammar of `/generate`. The last three are not TGI's."""


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """OpenAI's form of no constraint."""


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """`value` is TGI's, `schema` llama.cpp's and Together's; without them, any object, as in
    OpenAI's API."""

    value: Any = UNSET
    schema: Any = UNSET


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """The schema is in OpenAI's `json_schema`, in TGI's `value`, or alone in `schema`."""

    json_schema: JsonSchemaConfig | UnsetType = UNSET
    value: JsonSchemaConfig | UnsetType = UNSET
    schema: Any = UNSET

    def __post_init__(self) -> None:
        if self.json_schema is UNSET and self.value is UNSET and self.schema is UNSET:
            raise ValueError("Object missing required field `json_schema`")


class RegexFormat(Struct, frozen=True, tag_field="type", tag="regex"):
    """`value` is TGI's; `pattern` is another name of it."""

    value: str | UnsetType = UNSET
    pattern: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.value is UNSET and self.pattern is UNSET:
            raise ValueError("Object missing required field `value`")


class ContextFreeFormat(Struct, frozen=True, tag_field="type", tag="grammar"):
    """A context-free grammar, in EBNF or in Lark."""

    grammar: str


class TagFormat(Struct, frozen=True, tag_field="type", tag="structural_tag"):
    """A structural tag of xgrammar's: a `format`, or `structures` with `triggers`."""

    format: Any = UNSET
    structures: Any = UNSET
    triggers: Any = UNSET


ResponseFormat = (
    TextFormat
    | JsonGrammar
    | JsonObjectFormat
    | RegexFormat
    | JsonSchemaFormat
    | ContextFreeFormat
    | TagFormat
)


class StructuredOutputs(Struct, frozen=True, kw_only=True):
    """vLLM's. One of the first six is the grammar, the others are settings of it."""

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


def grammar_of(wanted: ResponseFormat | None) -> Grammar | None:
    """Return the grammar of a response format, if it has one."""
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    if isinstance(wanted, JsonObjectFormat):
        given = wanted.schema if wanted.value is UNSET else wanted.value
        return JsonGrammar({"type": "object"} if given in (UNSET, None) else given)
    if isinstance(wanted, JsonSchemaFormat):
        config = wanted.value if wanted.json_schema is UNSET else wanted.json_schema
        return JsonGrammar(wanted.schema) if config is UNSET else JsonSchemaGrammar(config)
    if isinstance(wanted, RegexFormat):
        pattern = wanted.pattern if wanted.value is UNSET else wanted.value
        assert pattern is not UNSET
        return RegexGrammar(pattern)
    if isinstance(wanted, ContextFreeFormat):
        return ContextFreeGrammar(wanted.grammar)
    if isinstance(wanted, TagFormat):
        return TagGrammar(
            {name: value for name, value in structs.asdict(wanted).items() if value is not UNSET}
        )
    return wanted

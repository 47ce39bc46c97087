"""Schemas as tools make them: pydantic, zod, OpenAPI and servers of the Model Context Protocol."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from pydantic import (
    UUID4,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    HttpUrl,
    JsonValue,
    PositiveInt,
    SecretStr,
    TypeAdapter,
    conint,
    conlist,
    conset,
    constr,
)
from pydantic import (
    Json as JsonText,
)
from referencing import Registry

from tests.grammar.engines import accepts, engine_of, is_taken, walk
from tgi_async.grammar.grammar import Json
from tgi_async.grammar.schema.normalize import normalize


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    zip: Annotated[str, Field(pattern=r"^\d{5}(-\d{4})?$")]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: conint(ge=0, le=9) = 9  # type: ignore[valid-type]


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Everything(BaseModel):
    tags: set[str]
    colors: set[Color]
    frozen: frozenset[int] = frozenset()
    few: conset(int, min_length=1, max_length=3)  # type: ignore[valid-type]
    path: Path
    id: UUID4
    other_id: UUID | None = None
    password: SecretStr
    count: conint(ge=1, multiple_of=5)  # type: ignore[valid-type]
    price: float
    born: date
    seen: datetime | None = None
    addresses: dict[str, Address] = {}
    pair: tuple[int, str] = (1, "a")
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


ZOD = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "point": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": [{"type": "number"}, {"type": "number"}],
        },
        "when": {"type": "string", "format": "date-time"},
        "maybe": {"anyOf": [{"not": {}}, {"type": "string"}]},
        "record": {"type": "object", "additionalProperties": {"type": "number"}},
        "again": {"$ref": "#/properties/point"},
    },
    "required": ["name", "age", "point"],
    "additionalProperties": False,
}
OPENAPI = {
    "type": "object",
    "required": ["id", "name"],
    "properties": {
        "id": {"type": "integer", "format": "int64", "example": 10},
        "name": {"type": "string", "nullable": True, "xml": {"name": "n"}},
        "photoUrls": {"type": "array", "items": {"type": "string"}, "xml": {"wrapped": True}},
        "status": {"type": "string", "enum": ["available", "sold"]},
        "ratio": {"type": "number", "format": "double", "minimum": 0, "exclusiveMinimum": True},
    },
    "externalDocs": {"url": "https://example.com"},
}
MCP = {
    "type": "object",
    "properties": {
        "paths": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "head": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        "sortBy": {"type": "string", "enum": ["name", "size"], "default": "name"},
        "excludePatterns": {"default": [], "type": "array", "items": {"type": "string"}},
    },
    "required": ["paths"],
    "additionalProperties": False,
    "$schema": "http://json-schema.org/draft-07/schema#",
}


@pytest.mark.parametrize(
    "schema",
    [Everything.model_json_schema(), ZOD, OPENAPI, MCP],
    ids=["pydantic", "zod", "openapi", "mcp"],
)
def test_what_is_written_is_valid(schema: dict[str, Any]) -> None:
    matcher = engine_of().matcher(Json(normalize(schema)))
    n_complete = 0
    for seed in range(4):
        text, complete = walk(matcher, seed, 800)
        n_complete += complete
        if complete and schema is not OPENAPI and schema is not ZOD:
            judge = Draft202012Validator(schema, registry=Registry())
            assert judge.is_valid(json.loads(text)), text
        if complete and schema not in (ZOD, OPENAPI, MCP):
            Everything.model_validate_json(text)
    assert n_complete


VALUES: list[tuple[Any, list[str], list[str]]] = [
    (
        ZOD,
        ['{"name": "a", "age": 3, "tags": ["b", "c"], "point": [1, 2.5], "again": [0, 0]}'],
        [
            '{"name": "a", "age": 0, "point": [1, 2]}',
            '{"name": "a", "age": 1, "tags": ["b", "b"], "point": [1, 2]}',
            '{"name": "a", "age": 1, "point": [1, 2, 3]}',
        ],
    ),
    (
        OPENAPI,
        ['{"id": 1, "name": "a", "ratio": 0.5}'],
        ['{"id": 1, "name": null}', '{"id": 1, "name": "a", "ratio": 0}'],
    ),
    (MCP, ['{"paths": ["a"], "head": 5, "sortBy": "size"}'], ['{"paths": []}', '{"head": 5}']),
]


@pytest.mark.parametrize(("schema", "good", "bad"), VALUES, ids=["zod", "openapi", "mcp"])
def test_values_are_taken_as_meant(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    matcher = engine_of().matcher(Json(normalize(schema)))
    assert all(accepts(matcher, text) for text in good)
    assert not any(accepts(matcher, text) for text in bad)


def test_what_openapi_means_with_nullable_is_named() -> None:
    ignored: dict[str, None] = {}
    normalize(OPENAPI, ignored)
    assert list(ignored) == ["nullable"]


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


PYDANTIC: list[tuple[Any, Any]] = [
    (set[str], ["a", "b"]),
    (frozenset[int], [1, 2]),
    (Path, "a/b"),
    (FilePath, "a/b"),
    (UUID4, "a3bb189e-8bf9-4888-9912-ace4e6543002"),
    (SecretStr, "s"),
    (conint(ge=1, lt=10), 9),
    (conint(multiple_of=3), 6),
    (PositiveInt, 5),
    (Annotated[int, Field(ge=-(2**63), le=2**63 - 1)], 2**63 - 1),
    (Annotated[int, Field(gt=0, lt=2**64)], 2**60 + 1),
    (Decimal, 1.5),
    (datetime, "2024-02-29T12:00:00Z"),
    (date, "2024-02-29"),
    (time, "12:00:00Z"),
    (timedelta, "P1DT2H"),
    (Literal["a", 1, True, None], True),
    (Tree, {"name": "a", "children": [{"name": "b", "children": []}]}),
    (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog", "good": True}),
    (JsonText[list[int]], "[1]"),
    (JsonValue, {"a": [1, None]}),
    (AnyUrl, "https://a.b/c"),
    (HttpUrl, "https://a.b/c"),
    (IPv4Address, "127.0.0.1"),
    (IPv6Address, "::1"),
    (IPv4Network, "10.0.0.0/8"),
    (constr(pattern=r"^[a-z]+$", min_length=2, max_length=5), "abc"),
    (conlist(int, min_length=1, max_length=3), [1, 2, 3]),
    (Size, 2),
    (dict[Color, int], {"red": 1}),
    (dict[int, str], {"1": "a"}),
    (tuple[int, ...], [1, 2]),
    (list[Closed] | None, [{"a": 1}]),
    (bytes, "a"),
]


@pytest.mark.parametrize(("kind", "value"), PYDANTIC, ids=lambda it: str(it)[:40])
def test_types_of_pydantic_are_followed(kind: Any, value: Any) -> None:
    schema = TypeAdapter(kind).json_schema()
    normal = normalize(schema)
    matcher = engine_of().matcher(Json(normal))
    assert is_taken(matcher, value, normal)
    judge = Draft202012Validator(schema, registry=Registry())
    for seed in range(2):
        text, complete = walk(matcher, seed, 200)
        assert not complete or judge.is_valid(json.loads(text)), text


ZODS = json.loads((Path(__file__).parent / "zod_schemas.json").read_text())
"""What zod 3.25 with zod-to-json-schema 3.25, and zod 4.6, made of some 50 definitions each."""


@pytest.mark.parametrize("name", ZODS)
def test_schemas_of_zod_are_followed(name: str) -> None:
    schema = ZODS[name]
    matcher = engine_of().matcher(Json(normalize(schema)))
    judge = validator_for(schema)(schema, registry=Registry())
    for seed in range(2):
        text, complete = walk(matcher, seed, 200)
        assert not complete or judge.is_valid(json.loads(text)), text

"""The cases of the public JSON-Schema-Test-Suite, each of them, of every draft that is there.

Every value that a case calls valid is taken token by token, in our one way to write it, and every
invalid one is refused; or the schema is refused, by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.grammar.engines import accepts, engine_of, is_taken, one_line
from tests.helpers.published import SCHEMA_SUITE, needs_published
from tgi_async.grammar.grammar import Json
from tgi_async.grammar.schema.errors import SchemaError
from tgi_async.grammar.schema.normalize import normalize
from workers.grammar.engine import GrammarError, Matcher

SUITE = SCHEMA_SUITE / "draft2020-12"
URIS = {
    "draft3": "http://json-schema.org/draft-03/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
FILES = [
    file
    for draft in URIS
    for file in sorted((SCHEMA_SUITE / draft).glob("*.json"))
    if file.stem != "refRemote"
]
LEAST_SHARE = 0.95
"""Of the valid values of a draft, that are taken."""
ANNOTATION = "string is only an annotation by default"
"""The suite's own words where it lets a `format` be broken; here it is held to if it is known."""

WHOLE = {
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "dependencies",
    "enum",
    "items",
    "maxItems",
    "maximum",
    "minimum",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "type",
}
"""Files of which every valid value is taken."""

pytestmark = needs_published


def cases(file: Path) -> list[dict[str, Any]]:
    """Each with a schema that names its draft."""
    found: list[dict[str, Any]] = json.loads(file.read_text())
    for case in found:
        if isinstance(case["schema"], dict):
            draft = URIS.get(file.parent.name, URIS["draft2020-12"])
            case["schema"] = {"$schema": draft, **case["schema"]}
    return found


def compiled(schema: Any) -> Matcher | None:
    """None if it is refused."""
    try:
        return engine_of().matcher(Json(normalize(schema)))
    except (SchemaError, GrammarError):
        return None


def counted(file: Path) -> tuple[int, int]:
    """How many valid values are taken, of how many; no invalid one may be."""
    taken = n = 0
    for case in cases(file):
        matcher = compiled(case["schema"])
        for test in case["tests"]:
            accepted = matcher is not None and is_taken(matcher, test["data"])
            if test["valid"] and not test["description"].endswith(ANNOTATION):
                n += 1
                taken += accepted
            elif not test["valid"]:
                assert not accepted, (case["description"], test["description"])
    return taken, n


def named(file: Path) -> str:
    return f"{file.parent.name}-{file.stem}"


@pytest.mark.parametrize(
    "draft",
    [
        pytest.param(draft, marks=[] if draft == "draft2020-12" else pytest.mark.full)
        for draft in URIS
    ],
)
def test_no_invalid_value_is_taken_and_nearly_every_valid_one(draft: str) -> None:
    counts = {file.stem: counted(file) for file in FILES if file.parent.name == draft}
    taken, n = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{draft}: {taken} of {n} valid values are taken")
    assert taken >= LEAST_SHARE * n
    for stem in WHOLE & counts.keys():
        assert counts[stem][0] == counts[stem][1], stem


FORMATS = (
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "uri",
    "uuid",
)
TOO_STRICT = (
    # Rare ways to write one that are never generated.
    "quoted string",
    "IPv6-address-literal",
    "leap second",
    "ipv4",
    "mixed format",
    "long valid",
)
TOO_LAX = ("punycode", "A-label", "256", "3rd and 4th")
"""What only a table of all letters or a count of the whole tells."""


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_held_to(name: str) -> None:
    for case in cases(SUITE / "optional" / "format" / f"{name}.json"):
        matcher = compiled(case["schema"])
        assert matcher is not None
        for test in case["tests"]:
            reported = f"{case['description']} {test['description']}"
            if any(part in reported for part in (TOO_STRICT if test["valid"] else TOO_LAX)):
                continue
            accepted = accepts(matcher, one_line(test["data"]))
            assert accepted == test["valid"], reported

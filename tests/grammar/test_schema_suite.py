"""The cases of the public JSON-Schema-Test-Suite, each of them, of every draft that is there.

Every value that a case calls valid is taken token by token, in our one way to write it, and every
invalid one is refused; or the schema is refused, by name.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.grammar.engines import accepts, engine_of, one_line
from tgi_async.grammar.grammar import Json
from tgi_async.grammar.schema.errors import SchemaError
from tgi_async.grammar.schema.normalize import normalize
from workers.grammar.engine import GrammarError, Matcher

SHARED = Path(os.environ.get("TGI_ASYNC_SHARED", Path(__file__).parents[3] / "shared"))
SUITE = SHARED / "data" / "json-schema-test-suite" / "draft2020-12"
FILES = sorted(SUITE.glob("*.json"))
LEAST_SHARE = 0.75
ANNOTATION = "string is only an annotation by default"
"""The suite's own words where it lets a `format` be broken; here it is held to if it is known."""
STRICTER = ("no validation: invalid number, but it still validates",)
"""What another metaschema allows: it is not read."""
SUPPORTED = (
    "additionalProperties",
    "const",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "infinite-loop-detection",
    "items",
    "pattern",
    "prefixItems",
    "properties",
    "required",
    "type",
)
"""Files of which no schema is refused."""

pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no JSON-Schema-Test-Suite in {SHARED}; set TGI_ASYNC_SHARED to its folder"
)


def cases(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def compiled(schema: Any, name: str) -> Matcher | None:
    """None if it is refused."""
    try:
        return engine_of(name).matcher(Json(normalize(schema)))
    except (SchemaError, GrammarError):
        return None


def orders(value: Any) -> Iterator[str]:
    """The texts of a value, with its properties in any order: a grammar has the schema's."""
    if isinstance(value, list):
        for items in itertools.product(*map(tuple, map(orders, value))):
            yield f"[{', '.join(items)}]"
    elif isinstance(value, dict):
        for names in itertools.permutations(value):
            for items in itertools.product(*(tuple(orders(value[name])) for name in names)):
                pairs = (
                    f"{one_line(name)}: {item}" for name, item in zip(names, items, strict=True)
                )
                yield f"{{{', '.join(pairs)}}}"
    else:
        yield one_line(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_case_is_followed_or_refused(file):
    for case in cases(file):
        matcher = compiled(case["schema"], "llguidance")
        if matcher is None:
            assert file.stem not in SUPPORTED, case["description"]
            continue
        for test in case["tests"]:
            accepted = any(accepts(matcher, text) for text in orders(test["data"]))
            if not test["description"].endswith(ANNOTATION):
                valid = test["valid"] and test["description"] not in STRICTER
                assert accepted == valid, (case["description"], test["description"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_xgrammar_takes_no_invalid_value(file):
    """It takes fewer valid ones: see docs/grammars.md."""
    pytest.importorskip("xgrammar")
    for case in cases(file):
        matcher = compiled(case["schema"], "xgrammar")
        for test in case["tests"]:
            if matcher is not None and not test["valid"]:
                accepted = any(accepts(matcher, text) for text in orders(test["data"]))
                assert not accepted, (case["description"], test["description"])


def test_most_schemas_are_followed():
    schemas = [case["schema"] for file in FILES for case in cases(file)]
    accepted = sum(compiled(schema, "llguidance") is not None for schema in schemas)
    print(f"{accepted} of {len(schemas)} schemas are followed")
    assert accepted >= LEAST_SHARE * len(schemas)


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
def test_formats_are_held_to(name):
    for case in cases(SUITE / "optional" / "format" / f"{name}.json"):
        matcher = compiled(case["schema"], "llguidance")
        assert matcher is not None
        for test in case["tests"]:
            told = f"{case['description']} {test['description']}"
            if any(part in told for part in (TOO_STRICT if test["valid"] else TOO_LAX)):
                continue
            accepted = any(accepts(matcher, text) for text in orders(test["data"]))
            assert accepted == test["valid"], told

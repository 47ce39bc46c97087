"""Every field of every route's body, at its bounds, beyond them, and of another type."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from tests.attacks.corpus import CHAT, INFER, Sent
from tests.attacks.target import Target, replies, target

Json = dict[str, Any]
Place = tuple[str | int, ...]

BASES = (
    Sent("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}),
    Sent("/generate_stream", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}),
    Sent("/", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}),
    Sent("/tokenize", {"inputs": "Hi"}),
    Sent("/tokenize", {"prompt": "Hi"}),
    Sent("/tokenize", CHAT),
    Sent("/detokenize", {"tokens": [65]}),
    Sent("/chat_tokenize", CHAT),
    Sent("/v1/chat/completions", CHAT),
    Sent("/v1/completions", {"prompt": "Hi", "max_tokens": 2}),
    Sent("/invocations", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}),
    Sent("/invocations", CHAT),
    Sent("/invocations", {"prompt": "Hi", "max_tokens": 2}),
    Sent("/vertex", {"instances": [{"inputs": "Hi", "parameters": {"max_new_tokens": 2}}]}),
    Sent("/vertex", {"instances": [CHAT]}),
    Sent(
        INFER,
        {
            "id": "1",
            "inputs": [{"name": "i", "shape": [1], "datatype": "BYTES", "data": [72]}],
            "outputs": [{"name": "o"}],
            "parameters": {"max_new_tokens": 2},
        },
    ),
)
"""A small valid body of each form of each route."""

HUGEST = 10**4999
HUGE = (2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, HUGEST)
ITEMS: tuple[Any, ...] = (0, "", "a", {}, [], None)
RAW = (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"0x1", b"1" + b"0" * 5000, b"-")
"""What is no JSON, or beyond its numbers."""
UNUSED = ("/tokenize", "/chat_tokenize")
"""Nothing is generated there: what numbers would mean is not looked at, but for their types."""
KNOWN_TYPES = {"number", "integer", "string", "boolean", "array", "object", "null"}


class Field(NamedTuple):
    """A field of a body, and the alternatives that the document has for it."""

    place: Place
    forms: tuple[Json, ...]

    @property
    def types(self) -> set[str]:
        return {one.get("type", "") for one in self.forms}


class Probe(NamedTuple):
    path: str
    content: bytes
    refused: bool
    """Whether the document says that it is."""


def forms_of(schema: Json, document: Json) -> list[Json]:
    """The alternatives of a schema, without references."""
    if reference := schema.get("$ref"):
        return forms_of(document["components"]["schemas"][reference.rpartition("/")[2]], document)
    found = [one for name in ("anyOf", "oneOf") for one in schema.get(name, ())]
    alternatives = [one for one in found if set(one) - {"required"}]
    if not alternatives:
        return [schema]
    return [form for one in alternatives for form in forms_of(one, document)]


def fields_of(
    schema: Json, document: Json, body: Any, place: Place = (), deep: int = 5
) -> Iterator[Field]:
    """The fields of `body`, which is at this place of the whole one, and those that it may have."""
    forms = forms_of(schema, document)
    if place:
        yield Field(place, tuple(forms))
    for form in forms if deep else ():
        if isinstance(body, dict) and not set(form.get("required", ())) <= set(body):
            continue
        for name, inner in form.get("properties", {}).items():
            value = body.get(name) if isinstance(body, dict) else None
            yield from fields_of(inner, document, value, (*place, name), deep - 1)
        if isinstance(form.get("items"), dict):
            item = body[0] if isinstance(body, list) and body else None
            yield from fields_of(form["items"], document, item, (*place, 0), deep - 1)


def with_value(body: Any, place: Place, value: Any) -> Any:
    """The body with a value at this place; what is missing on the way is made."""
    if not place:
        return value
    name, *rest = place
    if isinstance(name, int):
        inside = body[0] if isinstance(body, list) and body else {}
        return [with_value(inside, tuple(rest), value)]
    inside = body if isinstance(body, dict) else {}
    return {**inside, name: with_value(inside.get(name, {}), tuple(rest), value)}


def values_of(field: Field) -> Iterator[tuple[Any, bool]]:
    """What to try, and whether the document refuses it wherever it stands."""
    numbers = [one for one in field.forms if one.get("type") in ("number", "integer")]
    for one in numbers:
        step = 1 if one["type"] == "integer" else 1e-6
        alone = len(numbers) == 1 and field.types <= {one["type"], "null"}
        for bound, beyond in (("minimum", -step), ("maximum", step)):
            if bound in one:
                yield one[bound], False
                yield one[bound] + beyond, alone
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            if bound in one:
                yield one[bound], alone
    if numbers:
        yield from ((value, False) for value in (*HUGE, -1, 0, 1.5, -0.0, 1e308, 5e-324, True))
        yield [[]], "array" not in field.types
        yield {"a": 1}, "object" not in field.types
    for one in field.forms:
        if "maxItems" in one:
            item = "a" if one.get("items", {}).get("type") == "string" else 1
            yield [item] * (one["maxItems"] + 1), False
        if "maxLength" in one:
            yield "a" * (one["maxLength"] + 1), False
    if "array" in field.types:
        yield from (([item] * 2000, False) for item in ITEMS)
        yield [], False
    if "string" in field.types:
        yield from ((value, False) for value in ("", "a" * 20_000, "\0", "1e999", "\U0001f600" * 9))
        yield 1.5, not field.types & {"number", "integer"} and field.types <= KNOWN_TYPES
    if "boolean" in field.types:
        yield from ((value, False) for value in (0, 1, "true", 2**64))


def probes(document: Json, share: float = 1.0) -> list[Probe]:
    """All that are to be sent, or a share of them that is drawn."""
    random = Random(1)
    paths = document["paths"]
    found: dict[tuple[str, bytes], Probe] = {}
    for base in BASES:
        path = "/v2/models/{model}/versions/{version}/infer" if base.path == INFER else base.path
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for field in fields_of(schema, document, base.body):
            for value, refused in values_of(field):
                if random.random() > share:
                    continue
                content = spelled(with_value(base.body, field.place, value))
                if isinstance(value, int | float):
                    refused = refused and base.path not in UNUSED
                found[base.path, content] = Probe(base.path, content, refused)
            if field.types & {"number", "integer"} and random.random() < share:
                marked = json.dumps(with_value(base.body, field.place, "<here>")).encode()
                for raw in RAW:
                    content = marked.replace(b'"<here>"', raw)
                    found[base.path, content] = Probe(base.path, content, True)
    return list(found.values())


def spelled(body: Any) -> bytes:
    """JSON, with HUGEST as digits, which are too many for Python to write by itself."""

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: marked(one) for name, one in value.items()}
        if isinstance(value, list):
            return [marked(one) for one in value]
        return "<huge>" if value == HUGEST else value

    return json.dumps(marked(body)).encode().replace(b'"<huge>"', b"1" + b"0" * 4999)


async def check(server: Target, chosen: list[Probe]) -> dict[int, int]:
    """Send them all, and return how many replies had each status."""
    counts: dict[int, int] = {}
    waiting = iter(chosen)

    async def one_after_another() -> None:
        for probe in waiting:
            head = (
                f"POST {probe.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(probe.content)}\r\n\r\n"
            )
            ((status, _, text),) = replies(await server.send(head.encode() + probe.content))
            counts[status] = counts.get(status, 0) + 1
            shown = (probe.path, probe.content[:500], status, text[:300])
            assert status < 500, shown
            assert b"nternal server error" not in text, shown
            if probe.refused:
                # In TGI's streams an error is an event.
                assert 400 <= status < 500 or text.startswith(b'data: {"error"'), shown
            assert not server.errors.found, (shown, server.errors.found)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(one_after_another())
    return counts


async def probes_of(server: Target, share: float = 1.0) -> list[Probe]:
    answer = await server.send(b"GET /api-doc/openapi.json HTTP/1.0\r\n\r\n")
    ((_, _, text),) = replies(answer)
    return probes(json.loads(text), share)


async def test_what_is_beyond_a_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of them; all are tried in the long version."""
    async with target(tmp_path, monkeypatch) as server:
        counts = await check(server, await probes_of(server, 0.03))
    assert counts[200] > 10, counts
    assert counts[422] > 100, counts


@pytest.mark.full
async def test_all_that_is_beyond_a_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with target(tmp_path, monkeypatch) as server:
        every = await probes_of(server)
        assert len(every) > 3000
        assert {probe.path for probe in every} == {base.path for base in BASES}
        assert sum(probe.refused for probe in every) > 1000
        print(len(every), await check(server, every))

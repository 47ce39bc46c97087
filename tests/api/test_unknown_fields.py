"""Which fields of a body its schema does not have, and what is done with them."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Ask, Settings, refusal
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api.chat.schema import ChatRequest
from tgi_async.api.completions.schema import CompletionRequest
from tgi_async.api.generate.schema import GenerateRequest
from tgi_async.api.ignored_fields import MOST_LOGGED, IgnoredFields, header_value
from tgi_async.api.unknown_fields import MOST_FIELDS, MOST_OBJECTS, unknown_fields
from tgi_async.api.unsupported import HARMLESS, REFUSED, SETTINGS_OF_REFUSED, ignored
from tgi_async.telemetry.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs" / "fields.md"
HEADER = "x-tgi-ignored"


@pytest.fixture(params=["chat", "complete"])
def ask(api: Api, request: pytest.FixtureRequest) -> Ask:
    """One of the OpenAI routes."""
    return api.chat if request.param == "chat" else api.complete


def paths(body: object, body_type: type = ChatRequest) -> list[str]:
    return list(unknown_fields(json.dumps(body).encode(), body_type))


class TestFinding:
    @pytest.mark.parametrize(
        ("part", "found"),
        [
            ({"foo": 1, "temperature": 0}, ["foo"]),
            ({"foo": None}, []),
            ({"messages": [{"role": "user", "content": "x", "foo": 1}]}, ["messages.foo"]),
            (
                {"messages": [{"role": "u", "content": [{"type": "text", "text": "", "foo": []}]}]},
                ["messages.content.foo"],
            ),
            (
                {
                    "messages": [
                        {"role": "u", "content": [{"type": "image_url", "image_url": {"foo": 1}}]}
                    ]
                },
                ["messages.content.image_url.foo"],
            ),
            ({"tools": [{"type": "function", "function": {"foo": 1}}]}, ["tools.function.foo"]),
            ({"tools": [{"function": {"parameters": {"foo": {"foo": 1}}}}]}, []),
            ({"tool_choice": "auto"}, []),
            ({"tool_choice": {"type": "function", "foo": 1}}, ["tool_choice.foo"]),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"foo": 1}}},
                ["response_format.json_schema.foo"],
            ),
            ({"response_format": {"type": "text", "value": 1}}, ["response_format.value"]),
            ({"response_format": {"type": "json_object", "schema": {"foo": 1}}}, []),
            ({"stream_options": {"foo": 1}}, ["stream_options.foo"]),
            ({"logit_bias": {"5": 1}, "chat_template_kwargs": {"foo": 1}}, []),
            ({"thinking": True}, []),
            ({"thinking": {"type": "enabled", "foo": 1}}, ["thinking.foo"]),
        ],
    )
    def test_fields_are_found_where_they_are(self, part: dict[str, Any], found: list[Any]) -> None:
        assert paths(part) == found

    def test_bodies_of_tgi_have_theirs_in_parameters(self) -> None:
        body = {"inputs": "x", "foo": 1, "parameters": {"foo": 2, "grammar": {"type": "json"}}}
        assert paths(body, GenerateRequest) == ["foo", "parameters.foo"]

    def test_the_routes_have_fields_of_their_own(self) -> None:
        assert paths({"prompt": "x", "messages": []}, CompletionRequest) == ["messages"]
        assert paths({"prompt": "x", "messages": []}) == ["prompt"]

    def test_what_is_found_is_bounded(self) -> None:
        assert len(paths({f"f{i}": 1 for i in range(3 * MOST_FIELDS)})) == MOST_FIELDS
        many = [{"role": "user", "content": ""}] * 70_000
        began = time.thread_time()
        assert paths({"messages": [*many, {"foo": 1}], "foo": 1}) == ["foo"]
        assert time.thread_time() - began < 1.0
        few = [{"role": "user", "content": ""}] * (MOST_OBJECTS - 10)
        assert paths({"messages": [*few, {"foo": 1}]}) == ["messages.foo"]

    def test_white_space_around_a_body_changes_nothing(self) -> None:
        body = b' \r\n\t{"foo" : 1 , "messages": [ { "bar":1 } ] } '
        assert list(unknown_fields(body, ChatRequest)) == ["foo", "messages.bar"]

    @pytest.mark.parametrize(
        "part", [rb'"modalities": 1e999', b'"modalities": "\xff"', b'"\xff": 1']
    )
    async def test_what_a_decoder_passes_over_breaks_nothing(
        self, client: httpx.AsyncClient, part: bytes
    ) -> None:
        body = b'{"messages": [{"role": "user", "content": "Hi"}], ' + part + b"}"
        headers = {"content-type": "application/json"}
        response = await client.post("/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 400

    def test_a_name_may_be_anything(self) -> None:
        assert paths({"\n": 1, "": 1, "ü": 1}) == ["\n", "", "ü"]


class TestHeader:
    async def test_an_unknown_field_passes_and_is_named(self, ask: Ask, api: Api) -> None:
        response = await ask("Hi", foo=1, bar={"x": 1}, baz=None, user="me")
        assert response.status_code == 200
        assert response.headers[HEADER] == "foo, bar"
        assert await api.metric("tgi_async_ignored_fields") == 2

    async def test_a_stream_names_it_too(self, ask: Ask, api: Api) -> None:
        response = await ask("Hi", stream=True, foo=1)
        assert response.headers[HEADER] == "foo"
        response = await api.generate_stream("Hi", foo=1)
        assert response.headers[HEADER] == "parameters.foo"

    async def test_a_refusal_names_it_too(self, ask: Ask) -> None:
        response = await ask("Hi", foo=1, n=0)
        assert response.status_code == 400
        assert response.headers[HEADER] == "foo"

    async def test_without_any_there_is_no_header(self, ask: Ask, api: Api) -> None:
        assert HEADER not in (await ask("Hi", temperature=0, user="me")).headers
        assert HEADER not in (await api.generate("Hi")).headers

    @pytest.mark.parametrize("path", ["/generate", "/", "/invocations"])
    async def test_tgis_routes_refuse_nothing(self, client: httpx.AsyncClient, path: str) -> None:
        body = {"inputs": "Hi", "foo": 1, "parameters": {"num_beams": 4, "top_k": None}}
        response = await client.post(path, json=body)
        assert response.status_code == 200
        assert response.headers[HEADER] == "foo, parameters.num_beams"

    async def test_sagemaker_tells_of_what_it_was_sent(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/invocations", json={"prompt": "Hi", "foo": 1})
        assert response.headers[HEADER] == "foo"
        response = await client.post("/invocations", json={"prompt": "Hi", "num_beams": 4})
        assert response.status_code == 422

    async def test_vertex_looks_into_its_instances(self, client: httpx.AsyncClient) -> None:
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi", "bar": 1}]}
        body = {"instances": [{"inputs": "Hi", "foo": 1}, chat], "baz": 1}
        response = await client.post("/vertex", json=body)
        assert response.status_code == 200
        assert response.headers[HEADER] == "baz, instances.foo, instances.messages.bar"
        chat["num_beams"] = 4
        response = await client.post("/vertex", json={"instances": [chat]})
        assert response.status_code == 422
        assert "`num_beams`" in response.text

    async def test_tokenizing_routes_tell_too(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/tokenize", json={"inputs": "Hi", "foo": 1})
        assert response.headers[HEADER] == "foo"

    def test_the_header_is_at_most_a_kilobyte_of_harmless_letters(self) -> None:
        value = header_value([f"{'x' * 20}{i}" for i in range(500)])
        assert len(value) <= 1024
        assert value.startswith(b"xxxxxxxxxxxxxxxxxxxx0, ")
        assert value.endswith(b", ...")
        assert header_value(["a\r\nb: c", "ü,;\x00", "x" * 999]) == (
            b"a??b:?c, ????, " + b"x" * 61 + b"..."
        )

    def test_each_name_is_logged_once_and_at_most_a_hundred(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        fields = IgnoredFields(Metrics(max_input_tokens=9, max_total_tokens=9))
        fields.note(["a\nb", "c"])
        fields.note(["c", "d" * 99])
        assert [record.args for record in caplog.records] == [
            ("a?b",),
            ("c",),
            (f"{'d' * 61}...",),
        ]
        fields.note([f"n{i}" for i in range(300)])
        assert len(caplog.records) == MOST_LOGGED


class TestStrictTgi:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_nothing_is_refused_and_all_is_named(self, ask: Ask, engine: FakeEngine) -> None:
        response = await ask(
            "Hi", num_beams=4, min_tokens=3, top_k=-5, n=2, foo=1, guided_regex="(", temperature=0
        )
        assert response.status_code == 200
        assert response.headers[HEADER] == "num_beams, foo, guided_regex, min_tokens, n, top_k"
        [request] = engine.requests
        assert request.sampling.min_tokens == 0
        assert not request.grammar


class TestRefused:
    async def test_what_would_change_the_text_is_refused_by_name(
        self, ask: Ask, engine: FakeEngine
    ) -> None:
        known = {"echo", "best_of"} if ask.__name__ == "complete" else set()
        for name in REFUSED.keys() - known:
            response = await ask("Hi", **{name: 7})
            assert HEADER not in response.headers
            assert refusal(response).startswith(
                f"Input validation error: `{name}` is not supported by this server."
            )
        assert engine.requests == []

    async def test_a_value_that_asks_for_nothing_passes_in_silence(self, api: Api) -> None:
        for place in range(2):
            fields = {
                name: refusal.neutral[place]
                for name, refusal in REFUSED.items()
                if place < len(refusal.neutral)
            }
            response = await api.chat("Hi", **fields)
            assert (response.status_code, response.headers.get(HEADER)) == (200, None)
        nulls = dict.fromkeys(REFUSED)
        assert (await api.chat("Hi", **nulls)).status_code == 200

    async def test_true_is_no_1(self, api: Api) -> None:
        assert (await api.chat("Hi", num_beams=True)).status_code == 400
        assert (await api.chat("Hi", length_penalty=1.0)).status_code == 200
        assert (await api.chat("Hi", use_beam_search=0)).status_code == 400

    async def test_their_settings_do_nothing_by_themselves(self, ask: Ask) -> None:
        response = await ask("Hi", **dict.fromkeys(SETTINGS_OF_REFUSED, 3))
        assert (response.status_code, response.headers.get(HEADER)) == (200, None)

    async def test_the_message_says_what_to_do(self, api: Api) -> None:
        response = await api.chat("Hi", repeat_penalty=1.1)
        assert refusal(response) == (
            "Input validation error: `repeat_penalty` is not supported by this server. "
            "`repetition_penalty`, `frequency_penalty` and `presence_penalty` are supported. "
            "Remove it from the request, or send 1"
        )


class TestHarmless:
    async def test_they_pass_in_silence(self, ask: Ask) -> None:
        response = await ask("Hi", **dict.fromkeys(HARMLESS[""], "x"))
        assert (response.status_code, response.headers.get(HEADER)) == (200, None)

    @pytest.mark.parametrize("place", HARMLESS)
    def test_only_in_their_places(self, place: str) -> None:
        for name in HARMLESS[place]:
            assert ignored({f"{place}.{name}" if place else name: b"1"}) == []
            assert ignored({f"elsewhere.{name}": b"1"}) == [f"elsewhere.{name}"]

    async def test_what_openais_client_sends_back_of_an_answer_is_not_named(
        self, client: httpx.AsyncClient, settings: Settings
    ) -> None:
        settings.max_input_tokens, settings.max_total_tokens = 200, 300
        answer = {
            "role": "assistant",
            "content": "Hello",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "index": 0,
                    "function": {"name": "f", "arguments": "{}"},
                }
            ],
        }
        result = {"role": "tool", "tool_call_id": "call_1", "content": "1"}
        user = {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {}}]}
        body = {"messages": [user, answer, result], "stream_options": {"include_usage": True}}
        response = await client.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.headers.get(HEADER)) == (200, None)


def test_the_document_lists_what_the_code_does() -> None:
    text = DOCS.read_text()

    def listed(title: str) -> list[str]:
        section = text.split(f"## {title}\n")[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        return [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]

    harmless = [
        f"{place}.{name}" if place else name for place, names in HARMLESS.items() for name in names
    ]
    assert sorted(listed("Harmless")) == sorted(harmless)
    assert sorted(listed("Refused")) == sorted(REFUSED)
    assert sorted(listed("Settings of refused fields")) == sorted(SETTINGS_OF_REFUSED)
    done = set(listed("Supported"))
    of_bodies = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert done == of_bodies

"""Tools with `--strict-tgi`: TGI's way, line by line."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.chat.test_tools import TIME, TOOLS, WEATHER, held_to, prompt_of, template, writes
from tests.api.conftest import Api, EventsOf, Settings
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.grammar.grammar import Choice, Json, Sequence
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

CALL = '{"function": {"_name": "get_weather", "city": "Seoul", "days": {"n": 3}}}'
NO_TOOL = '{"function": {"_name": "no_tool", "content": "Hello"}}'
SHOWS_TOOLS = (
    "{% if tools %}{{ tools | length }} tools{% endif %}{% for m in messages %}\n{{ m.content }}"
    "{% endfor %}"
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.strict_tgi = True
    settings.max_total_tokens = 8192
    settings.max_input_tokens = 8000
    return settings


@pytest.fixture
def chat_template() -> ChatTemplate | None:
    return template(SHOWS_TOOLS)


def written(text: str) -> list[Any]:
    return [words(text[at : at + 3]) for at in range(0, len(text), 3)] + [[EOS]]


async def test_a_call_has_one_form(api: Api, engine: FakeEngine) -> None:
    writes(engine, CALL)
    body = (await api.chat("Weather?", tools=TOOLS)).json()
    [choice] = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "0",
                "type": "function",
                "function": {
                    "description": None,
                    "name": "get_weather",
                    "arguments": '{"city":"Seoul","days":{"n":3}}',
                },
            }
        ],
    }
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len(engine.batches)
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("auto", ["get_weather", "get_time", "no_tool"]),
        ("required", ["get_weather", "get_time"]),
        ("get_time", ["get_time"]),
        ({"type": "function", "function": {"name": "get_time"}}, ["get_time"]),
    ],
)
async def test_each_answer_is_held_to_a_call_of_one(
    api: Api,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    choice: dict[str, Any] | str,
    names: list[str],
) -> None:
    writes(engine, CALL)
    await api.chat("Hi", tools=TOOLS, tool_choice=choice)
    _, functions, _ = held_to(engine, Sequence).parts
    assert isinstance(functions, Choice)
    schemas = [option.schema for option in functions.options if isinstance(option, Json)]
    for schema, name in zip(schemas, names, strict=True):
        assert f'"{name}"' in json.dumps(schema["properties"]["_name"])
    assert all(schema["required"][0] == "_name" for schema in schemas)
    assert all(schema["additionalProperties"] is False for schema in schemas)
    assert prompt_of(engine, tokenizer).startswith(f"{len(names)} tools")


async def test_the_prompt_is_reported_behind_the_last_message(
    api: Api, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    writes(engine, CALL)
    await api.chat("Hi", tools=TOOLS)
    assert "Hi\n---\n\nGiven the functions available, please" in prompt_of(engine, tokenizer)
    await api.chat("Hi", tools=TOOLS, tool_prompt="Choose well.")
    assert prompt_of(engine, tokenizer).endswith("Hi\n---\nChoose well.")


class TestOfATemplateWithoutTools:
    @pytest.fixture
    def chat_template(self) -> ChatTemplate | None:
        return template("{{ messages[-1].content }}")

    async def test_the_tools_are_reported_too(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        writes(engine, CALL)
        await api.chat("Hi", tools=[TIME], tool_choice="required", tool_prompt="Choose.")
        assert prompt_of(engine, tokenizer) == f"Hi\n---\n{json.dumps([TIME])}\nChoose."


async def test_no_tool_is_answered_a_second_time_in_words(
    api: Api, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    second = [words("Hel"), words("lo", " there"), [EOS]]
    engine.batches_in_order = [written(NO_TOOL), second]
    body = (await api.chat("Hi", tools=TOOLS, logprobs=True)).json()
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello there"}
    first, plain = engine.requests
    assert first.grammar
    assert plain.grammar == ""
    assert prompt_of(engine, tokenizer) == "Hi"
    # What is reported of it is the first one's, but for the prompt.
    assert body["usage"]["completion_tokens"] == len(written(NO_TOOL))
    assert body["usage"]["prompt_tokens"] == len(plain.prompt)
    assert len(choice["logprobs"]["content"]) == len(written(NO_TOOL))
    assert choice["finish_reason"] == "stop"


async def test_a_call_that_is_cut_off_is_an_error(api: Api, engine: FakeEngine) -> None:
    writes(engine, CALL[:30])
    engine.finish_reason = "length"
    response = await api.chat("Hi", tools=TOOLS)
    assert response.status_code == 422
    body = response.json()
    assert body["error_type"] == "tool_error"
    assert body["error"].startswith("Tool error: Failed to parse generated text: ")


@pytest.mark.parametrize("tools", [TOOLS, []])
async def test_grammar_and_tools_exclude_each_other(
    api: Api, engine: FakeEngine, tools: list[Any]
) -> None:
    form = {"type": "json", "value": {"properties": {}}}
    response = await api.chat("Hi", tools=tools, response_format=form, tool_choice="none")
    assert response.status_code == 422
    assert response.json() == {
        "error": "Tool error: Grammar and tools are mutually exclusive",
        "error_type": "tool_error",
    }
    assert engine.requests == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_a_streamed_call(api: Api, engine: FakeEngine, events: EventsOf, size: int) -> None:
    writes(engine, CALL, size)
    *chunks, done = events(await api.chat("Weather?", tools=TOOLS, stream=True))
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all(delta.keys() == {"role", "tool_calls"} for delta in deltas)
    calls = [call for delta in deltas for call in delta["tool_calls"]]
    first = calls[0]
    assert first["function"] == {"name": "get_weather", "arguments": "{"}
    assert (first["index"], first["type"]) == (0, "function")
    assert all(call["function"]["name"] is None for call in calls[1:])
    assert len({call["id"] for call in calls}) == 1
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"city": "Seoul", "days": {"n": 3}}
    assert {chunk["choices"][0]["finish_reason"] for chunk in chunks} == {None}


async def test_ids_of_streamed_calls_go_on_where_the_conversation_is(
    client: httpx.AsyncClient, engine: FakeEngine, events: EventsOf
) -> None:
    writes(engine, CALL)
    function = {"name": "get_time", "arguments": {}}
    calls = [{"id": "7", "type": "function", "function": function}, {"function": function}]
    calls.append({"id": None, "type": None, "function": function})
    messages = [{"role": "assistant", "tool_calls": calls}, {"role": "user", "content": "Hi"}]
    body = {"messages": messages, "tools": [WEATHER], "stream": True}
    *chunks, _ = events(await client.post("/v1/chat/completions", json=body))
    assert chunks[0]["choices"][0]["delta"]["tool_calls"][0]["id"] == "8"


async def test_a_stream_of_no_tool_is_that_of_the_second_generation(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    second = [words("Hel"), words("lo", " there"), [EOS]]
    engine.batches_in_order = [written(NO_TOOL), second]
    *chunks, done = events(await api.chat("Hi", tools=TOOLS, stream=True))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "Hello there"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert engine.generations[0].cancelled


async def test_of_a_streamed_call_without_a_name_nothing_is_reported(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    writes(engine, CALL[:20])
    assert events(await api.chat("Hi", tools=TOOLS, stream=True)) == ["[DONE]"]


async def test_usage_of_a_streamed_call(api: Api, engine: FakeEngine, events: EventsOf) -> None:
    writes(engine, CALL)
    options = {"include_usage": True}
    response = await api.chat("Hi", tools=TOOLS, stream=True, stream_options=options)
    *_, usage, _ = events(response)
    assert usage["usage"]["completion_tokens"] == len(engine.batches)


async def test_a_call_of_a_vertex_instance_is_reported_as_json(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    writes(engine, CALL)
    instance = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}
    response = await client.post("/vertex", json={"instances": [instance]})
    [prediction] = response.json()["predictions"]
    [call] = json.loads(prediction)
    assert call["function"]["name"] == "get_weather"

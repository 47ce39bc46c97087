"""OpenAI's older form of tools: `functions`, `function_call`, messages of the role `function`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.chat.test_tools import CALL, QWEN, TIME, TWO_CALLS, WEATHER, prompt_of, template
from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

FUNCTIONS = [WEATHER["function"], TIME["function"]]
ASKED = {"role": "user", "content": "Weather?"}
CALLED = {"name": "get_weather", "arguments": '{"city": "Seoul"}'}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.max_total_tokens, settings.max_input_tokens = 8192, 8000
    return settings


@pytest.fixture
def chat_template() -> ChatTemplate | None:
    return template(QWEN)


def writes(engine: FakeEngine, text: str) -> None:
    engine.batches = [words(text[at : at + 3]) for at in range(0, len(text), 3)] + [[EOS]]


async def test_a_call_is_reported_in_the_form_in_which_it_was_asked_for(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    writes(engine, CALL)
    [choice] = (await api.chat("Hi", functions=FUNCTIONS)).json()["choices"]
    assert choice["finish_reason"] == "function_call"
    message = choice["message"]
    assert message == {"role": "assistant", "content": None, "function_call": CALLED}

    *chunks, _ = events(await api.chat("Hi", functions=FUNCTIONS, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    pieces = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert [piece["name"] for piece in pieces if "name" in piece] == ["get_weather"]
    assert "".join(piece["arguments"] for piece in pieces) == CALLED["arguments"]
    assert not any("tool_calls" in delta for delta in deltas)
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


async def test_there_is_one_call_at_most(api: Api, engine: FakeEngine) -> None:
    writes(engine, TWO_CALLS)
    [choice] = (await api.chat("Hi", functions=FUNCTIONS)).json()["choices"]
    assert choice["message"]["function_call"]["name"] == "get_weather"


async def test_prose_is_as_ever(api: Api, engine: FakeEngine) -> None:
    writes(engine, "It rains.")
    [choice] = (await api.chat("Hi", functions=FUNCTIONS)).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "It rains."}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({}, {"parallel_tool_calls": False}),
        ({"function_call": "auto"}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"function_call": "none"}, {"tool_choice": "none"}),
        ({"function_call": {"name": "get_time"}}, {"tool_choice": "get_time"}),
    ],
)
async def test_the_model_is_asked_the_same(
    api: Api, engine: FakeEngine, older: dict[str, Any], newer: dict[str, Any]
) -> None:
    await api.chat("Hi", functions=FUNCTIONS, **older)
    await api.chat("Hi", tools=[WEATHER, TIME], **newer)
    first, second = engine.requests
    assert (first.prompt, first.grammar) == (second.prompt, second.grammar)


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"functions": FUNCTIONS, "tools": [TIME]}, "`functions` is the older form of `tools`"),
        ({"function_call": {"name": "f"}}, "there are no `functions` to call"),
        ({"functions": FUNCTIONS, "function_call": {"name": "f"}}, "name f not found"),
    ],
)
async def test_what_does_not_fit_together_is_refused(
    api: Api, engine: FakeEngine, fields: dict[str, Any], reported: str
) -> None:
    assert reported in refusal(await api.chat("Hi", **fields))
    assert engine.requests == []


async def test_a_conversation_goes_on_as_with_tools(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    result = {"role": "function", "name": "get_weather", "content": "rain"}
    older = [ASKED, {"role": "assistant", "content": None, "function_call": CALLED}, result]
    call = {"id": "call00001", "type": "function", "function": CALLED}
    newer = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {**result, "role": "tool", "tool_call_id": "call00001"},
    ]
    for messages in (older, newer):
        response = await client.post("/v1/chat/completions", json={"messages": messages})
        assert response.status_code == 200
    first, second = engine.requests
    assert first.prompt == second.prompt
    assert json.dumps(CALLED["name"]) in prompt_of(engine, tokenizer)


async def test_tgi_knows_no_functions(api: Api, engine: FakeEngine, settings: Settings) -> None:
    settings.strict_tgi = True
    [choice] = (await api.chat("Hi", functions=FUNCTIONS, function_call="auto")).json()["choices"]
    assert choice["message"]["content"] == "Hello there"
    assert engine.requests[0].grammar == ""

"""The shapes of tools, of the choice among them and of calls in earlier messages."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"tools": [{}]}, "tools[0]: Object missing required field `"),
        ({"tools": [{"type": "web"}]}, "tools[0]: Object missing required field `function`"),
        (
            {"tools": [TOOL, {"type": "function", "function": {}}]},
            "tools[1].function: Object missing required field `name`",
        ),
        ({"tools": TOOL}, "tools: Expected `array | null`, got `object`"),
        ({"tool_choice": 1}, "tool_choice: Expected `str | object | null`, got `int`"),
        ({"tool_choice": {}}, "tool_choice: Object missing required field `type`"),
        (
            {"tool_choice": {"type": "function"}},
            "tool_choice: Object missing required field `function`",
        ),
        (
            {"tool_choice": {"type": "function", "function": {}}},
            "tool_choice.function: Object missing required field `name`",
        ),
        (
            {"tool_choice": {"type": "allowed_tools"}},
            "tool_choice: Object missing required field `allowed_tools`",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": []}},
            "tool_choice.mode: Invalid enum value 'none'",
        ),
        ({"functions": [{}]}, "functions[0]: Object missing required field `name`"),
        ({"function_call": {}}, "function_call: Object missing required field `name`"),
        ({"tool_prompt": []}, "tool_prompt: Expected `str | null`, got `array`"),
    ],
)
async def test_malformed_ones_are_reported(api: Api, fields: dict[str, Any], reported: str) -> None:
    is_reported(await api.chat("Hi", **fields), reported)


@pytest.mark.parametrize(
    ("message", "reported"),
    [
        ({"tool_calls": [{"id": "1"}]}, "tool_calls[0]: Object missing required field `function`"),
        (
            {"tool_calls": [{"id": 1, "function": {"name": "f"}}]},
            "tool_calls[0].id: Expected `str | null`, got `int`",
        ),
        (
            {"tool_calls": [{"function": {"arguments": "{}"}}]},
            "tool_calls[0].function: Object missing required field `name`",
        ),
        (
            {"content": [{"type": "image_url", "image_url": 1}]},
            "content[0].image_url: Expected `str | object`, got `int`",
        ),
        (
            {"content": [{"type": "image_url", "image_url": {}}]},
            "content[0].image_url: Object missing required field `url`",
        ),
    ],
)
async def test_malformed_messages_are_reported(
    client: httpx.AsyncClient, message: dict[str, Any], reported: str
) -> None:
    body = {"messages": [{"role": "assistant", **message}]}
    is_reported(await client.post("/v1/chat/completions", json=body), f"messages[0].{reported}")


def is_reported(response: httpx.Response, reported: str) -> None:
    prefix = "Failed to deserialize the JSON body into the target type: "
    assert refusal(response).startswith(prefix + reported)


async def test_a_conversation_with_calls_and_their_results_is_taken(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    settings.max_total_tokens, settings.max_input_tokens = 1024, 1000
    function = {"name": "f", "arguments": "{}", "description": None}
    call = {"id": "0", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "0", "content": "done"},
    ]
    body = {"messages": messages, "tools": [TOOL], "tool_choice": "none"}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


@pytest.mark.parametrize("strict", [False, True])
async def test_answers_have_no_field_of_calls(
    api: Api, events: EventsOf, settings: Settings, strict: bool
) -> None:
    settings.strict_tgi = strict
    [choice] = (await api.chat("Hi")).json()["choices"]
    assert choice["message"].keys() == {"role", "content"}
    *chunks, _ = events(await api.chat("Hi", stream=True))
    assert all(chunk["choices"][0]["delta"].keys() <= {"role", "content"} for chunk in chunks)

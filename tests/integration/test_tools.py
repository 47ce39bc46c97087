"""Tools of the chat route with the real model: what a grammar lets through is what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.integration.server import Server
from tgi_async.text.tokenizer import Tokenizer

pytestmark = pytest.mark.model

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
NATION = {
    "type": "object",
    "properties": {"nation": {"type": "string", "maxLength": 20}},
    "required": ["nation"],
    "additionalProperties": False,
}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Which is the capital of Peru?"}],
    "tools": [
        {"type": "function", "function": {"name": "find", "parameters": CITY, "strict": True}}
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": NATION},
    },
    "parallel_tool_calls": False,
    "max_tokens": 60,
    "temperature": 1,
}


async def answer(server: Server, **fields: Any) -> dict[str, Any]:
    async with server.client() as client:
        response = await client.post("/v1/chat/completions", json={**ASKED, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def test_an_answer_is_a_call_or_has_the_form(server: Server, tokenizer: Tokenizer) -> None:
    starts = {one: tokenizer.encode(one, add_special_tokens=False)[0] for one in ("<", "{", '{"')}
    away = {str(starts[one]): -100 for one in ("{", '{"')}
    for seed in range(2):
        choice = await answer(server, seed=seed, logit_bias=away)
        [call] = choice["message"]["tool_calls"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        assert call["function"]["name"] == "find"
        Draft202012Validator(CITY).validate(json.loads(call["function"]["arguments"]))
        choice = await answer(server, seed=seed, logit_bias={str(starts["<"]): -100})
        assert ("tool_calls" in choice["message"], choice["finish_reason"]) == (False, "stop")
        Draft202012Validator(NATION).validate(json.loads(choice["message"]["content"]))


async def test_a_call_that_runs_out_of_tokens_shows_no_marks(server: Server) -> None:
    seen = set()
    for n in (1, 4, 8, 12, 16, 20):
        choice = await answer(server, tool_choice="required", max_tokens=n, temperature=0)
        message = choice["message"]
        assert message["content"] is None
        if choice["finish_reason"] == "length":
            for call in message.get("tool_calls", []):
                assert call["function"]["name"] == "find"
            seen.add(len(message.get("tool_calls", [])))
    assert seen == {0, 1}

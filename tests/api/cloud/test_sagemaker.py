"""`/invocations`: which route's work it does, by the shape of the body."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, EventsOf
from tests.doubles.fake_engine import FakeEngine

MESSAGES = [{"role": "user", "content": "Hi"}]


async def invoke(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/invocations", json=body)


async def test_inputs_are_answered_as_by_the_compat_route(client: httpx.AsyncClient) -> None:
    body = {"inputs": "Hi ", "parameters": {"max_new_tokens": 5}}
    response = await invoke(client, **body)
    assert response.json() == [{"generated_text": "Hi Hello there"}]
    assert response.json() == (await client.post("/", json=body)).json()
    assert response.headers["x-compute-characters"] == "3"


async def test_messages_are_a_chat(client: httpx.AsyncClient) -> None:
    reply = (await invoke(client, messages=MESSAGES)).json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["content"] == "Hello there"


async def test_a_prompt_is_a_completion(client: httpx.AsyncClient) -> None:
    reply = (await invoke(client, prompt="Hi")).json()
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"] == "Hello there"


@pytest.mark.parametrize(
    ("body", "done"),
    [({"inputs": "Hi"}, False), ({"messages": MESSAGES}, True), ({"prompt": "Hi"}, True)],
)
async def test_each_can_be_a_stream(
    client: httpx.AsyncClient, events: EventsOf, body: dict[str, Any], done: bool
) -> None:
    found = events(await invoke(client, **body, stream=True))
    assert (found[-1] == "[DONE]") is done
    assert len(found) > 2


async def test_the_first_type_that_fits_is_taken(client: httpx.AsyncClient) -> None:
    both = {"inputs": "Hi", "messages": MESSAGES, "prompt": "Hi"}
    assert isinstance((await invoke(client, **both)).json(), list)
    broken = {"inputs": 1, "messages": MESSAGES, "prompt": "Hi"}
    assert (await invoke(client, **broken)).json()["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"inputs": 1}, "inputs: Expected `str`"),
        ({"inputs": "Hi", "parameters": {"top_k": "x"}}, "parameters.top_k: Expected"),
        ({"messages": "Hi"}, "messages: Expected `array`"),
        ({"prompt": None}, "prompt: Expected"),
        ({}, "Object has none of the fields `inputs`, `messages`, `prompt`"),
    ],
)
async def test_what_fits_none_is_reported_by_the_field_that_is_there(
    client: httpx.AsyncClient, engine: FakeEngine, body: dict[str, Any], place: str
) -> None:
    response = await invoke(client, **body)
    assert response.status_code == 422
    prefix = "Failed to deserialize the JSON body into the target type: "
    assert response.text.startswith(prefix + place)
    assert engine.requests == []


async def test_a_body_that_is_no_object_is_a_422(client: httpx.AsyncClient) -> None:
    response = await client.post("/invocations", json=["Hi"])
    assert response.status_code == 422
    assert response.text.endswith("Expected `object`, got `array`")


async def test_a_broken_rule_is_reported_as_by_the_route_itself(client: httpx.AsyncClient) -> None:
    response = await invoke(client, inputs="Hi", parameters={"top_k": 0})
    assert response.status_code == 422
    assert response.json()["error"].endswith("`top_k` must be strictly positive")


async def test_it_is_counted_as_one_request(client: httpx.AsyncClient, api: Api) -> None:
    await invoke(client, prompt="Hi")
    assert await api.metric("tgi_request_count") == 1
    assert await api.metric("tgi_request_success") == 1

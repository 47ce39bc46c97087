"""The `x-*` headers, by route: which there are, and in which unit."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Settings

STREAM = {"x-compute-type", "x-compute-characters", "x-request-id"}
WHOLE = STREAM | {
    "x-compute-time",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
}
MESSAGES = [{"role": "user", "content": "Hi"}]
TIMED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "Hi"}),
    ("/", {"inputs": "Hi"}),
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/completions", {"prompt": "Hi"}),
    ("/invocations", {"inputs": "Hi"}),
]
STREAMED = [
    ("/generate_stream", {"inputs": "Hi"}),
    *((path, {**body, "stream": True}) for path, body in TIMED if path != "/generate"),
]


def reported(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("x-")}


@pytest.mark.parametrize(("path", "body"), TIMED)
async def test_a_reply_has_all_of_them(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    headers = reported(await client.post(path, json=body))
    assert set(headers) == WHOLE
    # The engine of these tests says that it queued for 0.5 s and computed for 2 s.
    assert headers["x-queue-time"] == "500"
    assert headers["x-inference-time"] == "2000"
    assert headers["x-time-per-token"] == "500"
    assert headers["x-generated-tokens"] == "4"
    assert headers["x-compute-type"] == "test-machine"
    assert re.fullmatch(r"\d+\.\d+", headers["x-compute-time"])
    total = int(headers["x-total-time"])
    assert total == int(float(headers["x-compute-time"]) * 1000)
    assert int(headers["x-validation-time"]) <= total


@pytest.mark.parametrize(("path", "body"), TIMED)
async def test_a_server_that_speculates_tells_what_it_gained(
    client: httpx.AsyncClient, settings: Settings, path: str, body: dict[str, Any]
) -> None:
    settings.max_drafts = 3
    headers = reported(await client.post(path, json=body))
    assert set(headers) == WHOLE | {"x-accepted-drafts", "x-rejected-drafts"}
    assert (headers["x-accepted-drafts"], headers["x-rejected-drafts"]) == ("2", "3")


@pytest.mark.parametrize(("path", "body"), STREAMED)
async def test_a_stream_has_those_that_are_known_when_it_begins(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await client.post(path, json=body)
    assert set(reported(response)) == STREAM | {"x-accel-buffering"}
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["content-type"] == "text/event-stream"


async def test_characters_are_those_of_unicode_and_tokens_those_of_the_model(api: Api) -> None:
    headers = (await api.generate("Hé한")).headers
    assert headers["x-compute-characters"] == "3"
    assert headers["x-prompt-tokens"] == "6"


async def test_several_prompts_are_added_up(api: Api) -> None:
    headers = (await api.complete(["Hi", "Hello"])).headers
    assert headers["x-compute-characters"] == "7"
    assert headers["x-prompt-tokens"] == "7"
    assert headers["x-generated-tokens"] == "8"
    assert headers["x-queue-time"] == "1000"
    assert headers["x-inference-time"] == "4000"
    assert headers["x-time-per-token"] == "500"

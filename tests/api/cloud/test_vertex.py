"""`/vertex`: several instances in one body."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Settings
from tests.doubles.fake_engine import FakeEngine, words
from tgi_async.errors import GenerationError

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


async def predict(client: httpx.AsyncClient, *instances: Any) -> httpx.Response:
    return await client.post("/vertex", json={"instances": list(instances)})


async def test_each_instance_has_its_prediction_in_order(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await predict(client, {"inputs": "Hi"}, CHAT, {"inputs": "Ho"})
    assert response.json() == {"predictions": ["Hello there"] * 3}
    lengths = sorted(len(request.prompt) for request in engine.requests)
    assert lengths[:2] == [2, 2]
    assert lengths[2] > 2


async def test_a_chat_that_asks_for_a_stream_is_predicted_whole(client: httpx.AsyncClient) -> None:
    response = await predict(client, {**CHAT, "stream": True})
    assert response.json() == {"predictions": ["Hello there"]}


async def test_the_prompt_is_not_part_of_the_text(client: httpx.AsyncClient) -> None:
    assert (await predict(client, {"inputs": "Hi "})).json() == {"predictions": ["Hello there"]}


async def test_all_parameters_count_and_a_text_is_sampled_by_default(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await predict(client, {"inputs": "Hi", "parameters": {"max_new_tokens": 7, "top_k": 3}})
    await predict(client, {"inputs": "Hi", "parameters": {"do_sample": False}})
    first, second = engine.requests
    assert (first.max_new_tokens, first.sampling.top_k) == (7, 3)
    assert first.sampling.do_sample
    assert not second.sampling.do_sample


async def test_no_instances_are_refused_in_tgis_words(client: httpx.AsyncClient) -> None:
    response = await predict(client)
    assert response.status_code == 422
    assert response.json() == {
        "error": "Input validation error",
        "error_type": "Input validation error",
    }


async def test_more_instances_than_could_ever_run_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await predict(client, *[{"inputs": "Hi"}] * 5)
    assert response.status_code == 422
    assert response.json()["error"] == (
        "Input validation error: at most 4 texts can be in one body. Given: 5. "
        "The limit is set by the server's --max-concurrent-requests"
    )
    assert engine.requests == []


async def test_an_instance_of_no_type_is_a_422(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await predict(client, {"inputs": "Hi"}, {"text": "Hi"})
    assert response.status_code == 422
    assert "none of the fields `inputs`, `messages`" in response.text
    assert engine.requests == []


async def test_a_broken_rule_is_reported(client: httpx.AsyncClient) -> None:
    response = await predict(client, {"inputs": "Hi", "parameters": {"top_k": 0}})
    assert response.status_code == 422
    assert response.json()["error"].endswith("`top_k` must be strictly positive")


async def test_the_first_failure_ends_the_others(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.batches = [words("a"), words("b"), words("c")]
    engine.error, engine.fail_before = GenerationError("no luck"), 2
    response = await predict(client, {"inputs": "Hi"}, {"inputs": "Ho"})
    assert response.status_code == 424
    assert response.json()["error_type"] == "generation"
    assert all(one.done or one.cancelled for one in engine.generations)
    assert (await predict(client, *[{"inputs": ""}] * 4)).status_code == 422  # permits are back


async def test_it_is_counted_as_one_request(client: httpx.AsyncClient, api: Api) -> None:
    await predict(client, {"inputs": "Hi"}, {"inputs": "Ho"})
    assert await api.metric("tgi_request_count") == 1


async def test_a_client_that_goes_away_ends_all(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.wait_before = 0
    asked = asyncio.create_task(predict(live, {"inputs": "Hi"}, {"inputs": "Ho"}))
    await engine.waiting.wait()
    asked.cancel()
    async with asyncio.timeout(10):
        while not all(one.cancelled for one in engine.generations):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class TestStrict:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_only_two_parameters_count(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        parameters = {"max_new_tokens": 7, "seed": 5, "top_k": 3, "do_sample": False}
        await predict(client, {"inputs": "Hi", "parameters": parameters})
        [request] = engine.requests
        assert (request.max_new_tokens, request.sampling.seed) == (7, 5)
        assert request.sampling.do_sample
        assert request.sampling.top_k == 0

    async def test_whatever_fails_is_a_500_that_says_nothing(
        self, client: httpx.AsyncClient
    ) -> None:
        response = await predict(client, {"inputs": ""})
        assert response.status_code == 500
        assert response.json() == {
            "error": "Incomplete generation",
            "error_type": "Incomplete generation",
        }

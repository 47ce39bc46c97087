"""Numbers as clients spell them that keep their settings as texts, or have one kind of number."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Settings, refusal
from tests.doubles.fake_engine import FakeEngine
from tgi_async.text.tokenizer import Tokenizer

HI = {"messages": [{"role": "user", "content": "Hi"}]}
ROUTES = [("/v1/chat/completions", HI), ("/v1/completions", {"prompt": "Hi"})]


@pytest.mark.parametrize(("route", "body"), ROUTES)
async def test_another_spelling_is_the_same_number(
    client: httpx.AsyncClient, engine: FakeEngine, route: str, body: dict[str, Any]
) -> None:
    usual: dict[str, Any] = {"max_tokens": 7, "temperature": 0.5, "top_k": 3, "seed": -4}
    other = {"max_tokens": "7", "temperature": "0.5", "top_k": 3.0, "seed": "-4.0"}
    for fields in (usual, other):
        response = await client.post(route, json={**body, **fields})
        assert response.status_code == 200, response.text
    one, two = engine.requests
    assert one.max_new_tokens == two.max_new_tokens == 7
    assert one.sampling == two.sampling


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 7.5},
        {"max_tokens": "seven"},
        {"max_tokens": ""},
        {"temperature": "0,7"},
        {"temperature": "nan"},
        {"temperature": "1e999"},
        {"temperature": True},
        {"max_tokens": "9" * 30},
        {"stream": "true"},
    ],
)
@pytest.mark.parametrize(("route", "body"), ROUTES)
async def test_what_is_no_number_is_refused(
    client: httpx.AsyncClient, route: str, body: dict[str, Any], fields: dict[str, Any]
) -> None:
    response = await client.post(route, json={**body, **fields})
    assert response.status_code == 400
    assert next(iter(fields)) in refusal(response)


async def test_limits_hold_for_every_spelling(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "Hi", "top_p": "1.5"})
    assert "`top_p` must be" in refusal(response)


async def test_texts_stay_texts(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    fields = {"prompt": "12", "stop": "3.0", "max_tokens": 5.0}
    await client.post("/v1/completions", json=fields)
    assert engine.requests[0].stop == ("3.0",)
    assert tokenizer.decode(engine.requests[0].prompt) == "12"


async def test_tgi_takes_one_spelling(client: httpx.AsyncClient, settings: Settings) -> None:
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": "7"}}
    assert (await client.post("/generate", json=body)).status_code == 422


class TestStrictly:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_the_routes_of_openai_do_too(self, client: httpx.AsyncClient) -> None:
        body = {"prompt": "Hi", "max_tokens": 7.0}
        assert (await client.post("/v1/completions", json=body)).status_code == 422

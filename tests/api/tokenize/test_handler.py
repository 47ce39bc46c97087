"""`/tokenize`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tokenizers import processors

from tests.api.conftest import Api, Settings
from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles.fake_engine import FakeEngine
from tgi_async.text.tokenizer import Tokenizer


async def test_tokens_have_their_places_in_the_text(
    client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    response = await client.post("/tokenize", json={"inputs": "aé<|im_end|>"})
    tokens = response.json()
    assert [(token["text"], token["start"], token["stop"]) for token in tokens] == [
        ("a", 0, 1),
        ("é", 1, 2),
        ("é", 1, 2),
        ("<|im_end|>", 2, 12),
    ]
    assert tokens[0]["id"] == tokenizer.encode("a")[0]


async def test_parameters_change_nothing(client: httpx.AsyncClient) -> None:
    body = {"inputs": "abc", "parameters": {"truncate": 1}}
    assert len((await client.post("/tokenize", json=body)).json()) == 3


async def test_an_empty_text_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/tokenize", json={"inputs": ""})
    assert response.status_code == 422
    assert response.json()["error"] == "Input validation error: `inputs` cannot be empty"


async def test_it_is_not_counted_as_a_generation(client: httpx.AsyncClient, api: Api) -> None:
    await client.post("/tokenize", json={"inputs": "abc"})
    assert await api.metric("tgi_request_count") == 0


async def post(client: httpx.AsyncClient, path: str = "/tokenize", **body: Any) -> httpx.Response:
    return await client.post(path, json=body)


class TestFormOfVLLM:
    async def test_a_prompt(self, client: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("aé<|im_end|>")
        response = await post(client, model="any", prompt="aé<|im_end|>")
        assert response.json() == {
            "count": 4,
            "max_model_len": 128,
            "tokens": ids,
            "token_strs": None,
        }
        strings = (await post(client, prompt="aé <|im_end|>", return_token_strs=True)).json()
        assert strings["token_strs"] == ["a", "Ã", "©", "Ġ", "<|im_end|>"]

    async def test_a_chat_is_what_the_chat_route_computes(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        found = (await post(client, messages=messages)).json()
        await client.post("/v1/chat/completions", json={"messages": messages})
        assert found["tokens"] == engine.requests[0].prompt
        assert found["count"] == len(found["tokens"])
        without = (await post(client, messages=messages, add_generation_prompt=False)).json()
        assert found["tokens"][: without["count"]] == without["tokens"]
        assert without["count"] < found["count"]

    async def test_what_is_longer_than_a_request_may_be_is_counted_too(
        self, client: httpx.AsyncClient
    ) -> None:
        assert (await post(client, prompt="a" * 1000)).json()["count"] == 1000
        assert (await post(client, prompt="")).json()["tokens"] == []

    @pytest.mark.parametrize(
        ("body", "reported"),
        [
            ({}, "Object has none of the fields `inputs`, `prompt`, `messages`"),
            ({"prompt": 3}, "prompt: Expected `str`, got `int`"),
            ({"messages": [], "chat_template": "{{ 1 }}"}, "`chat_template` is not supported"),
            ({"messages": [{"role": "user"}]}, "`messages[0].content` must be a text"),
        ],
    )
    async def test_what_cannot_be_tokenized_is_reported(
        self, client: httpx.AsyncClient, body: dict[str, Any], reported: str
    ) -> None:
        response = await post(client, **body)
        assert response.status_code == 422
        assert reported in response.text

    async def test_tgis_field_comes_first(self, client: httpx.AsyncClient) -> None:
        assert len((await post(client, inputs="abc", prompt="a")).json()) == 3


class TestWithSpecialTokens:
    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        inner = tiny_inner()
        inner.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 256)]
        )
        return Tokenizer(inner)

    async def test_a_text_gets_them_and_a_chat_has_its_own(self, client: httpx.AsyncClient) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        n_plain = (await post(client, messages=messages)).json()["count"]
        assert (await post(client, prompt="abc")).json()["tokens"][0] == 256
        assert (await post(client, prompt="abc", add_special_tokens=False)).json()["count"] == 3
        more = (await post(client, messages=messages, add_special_tokens=True)).json()
        assert more["count"] == n_plain + 1


class TestDetokenize:
    async def test_is_the_way_back(self, client: httpx.AsyncClient) -> None:
        text = "aé <|im_start|>한<|im_end|>"
        ids = (await post(client, prompt=text)).json()["tokens"]
        assert (await post(client, "/detokenize", tokens=ids)).json() == {"prompt": text}
        assert (await post(client, "/detokenize", tokens=[], model="m")).json() == {"prompt": ""}

    async def test_what_is_no_token_is_reported(self, client: httpx.AsyncClient) -> None:
        response = await post(client, "/detokenize", tokens=[1, 258])
        assert response.status_code == 422
        assert response.json()["error"].endswith("`tokens` has 258, and this model's are below 258")
        for wrong in ([-1], [2**31], [1.5], ["a"], "a", None):
            assert (await post(client, "/detokenize", tokens=wrong)).status_code == 422


class TestStrict:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_there_is_tgis_form_only(self, client: httpx.AsyncClient) -> None:
        assert (await post(client, prompt="abc")).status_code == 422
        assert len((await post(client, inputs="abc")).json()) == 3

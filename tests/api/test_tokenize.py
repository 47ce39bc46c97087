"""`/tokenize`."""

from __future__ import annotations


async def test_tokens_have_their_places_in_the_text(client, tokenizer):
    response = await client.post("/tokenize", json={"inputs": "aé<|im_end|>"})
    tokens = response.json()
    assert [(token["text"], token["start"], token["stop"]) for token in tokens] == [
        ("a", 0, 1),
        ("é", 1, 2),
        ("é", 1, 2),
        ("<|im_end|>", 2, 12),
    ]
    assert tokens[0]["id"] == tokenizer.encode("a")[0]


async def test_parameters_change_nothing(client):
    body = {"inputs": "abc", "parameters": {"truncate": 1}}
    assert len((await client.post("/tokenize", json=body)).json()) == 3


async def test_an_empty_text_is_refused(client):
    response = await client.post("/tokenize", json={"inputs": ""})
    assert response.status_code == 422
    assert response.json()["error"] == "Input validation error: `inputs` cannot be empty"


async def test_it_is_not_counted_as_a_generation(client, api):
    await client.post("/tokenize", json={"inputs": "abc"})
    assert await api.metric("tgi_request_count") == 0

"""What is wrong with a body is answered in plain text, and no more of it is read than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.conftest import Settings
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api import body as body_module

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": "Hi"} more',
        b'{"inputs": "\xff"}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "\\udc00 text"}',
        b'{"inputs": "Hi", "x": ' + b"[" * 4000 + b"]" * 4000 + b"}",
    ],
)
async def test_what_is_not_json_is_a_400(
    client: httpx.AsyncClient, engine: FakeEngine, body: bytes
) -> None:
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text.startswith("Failed to parse the request body as JSON: ")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"[]", "Expected `object`"),
        (b"{}", "Object missing required field `inputs`"),
        (b'{"inputs": 1}', "inputs: Expected `str`"),
        (b'{"inputs": null}', "inputs: Expected `str`"),
        (b'{"inputs": "Hi", "parameters": []}', "parameters: Expected"),
        (b'{"inputs": "Hi", "parameters": {"details": "yes"}}', "parameters.details: Expected"),
    ],
)
async def test_what_has_the_wrong_type_is_a_422_that_names_the_place(
    client: httpx.AsyncClient, body: bytes, place: str
) -> None:
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.status_code == 422
    assert response.text.startswith(
        f"Failed to deserialize the JSON body into the target type: {place}"
    )


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_what_is_not_declared_as_json_is_a_415(
    client: httpx.AsyncClient, content_type: str
) -> None:
    headers = {"content-type": content_type}
    response = await client.post("/generate", content=b'{"inputs":"Hi"}', headers=headers)
    assert response.status_code == 415
    assert response.text == "Expected request with `Content-Type: application/json`"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"]
)
async def test_json_may_be_declared_in_several_ways(
    client: httpx.AsyncClient, content_type: str
) -> None:
    headers = {"content-type": content_type}
    response = await client.post("/generate", content=b'{"inputs":"Hi"}', headers=headers)
    assert response.status_code == 200


async def test_a_body_over_the_limit_is_a_413(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    body = b'{"inputs": "' + b"a" * settings.payload_limit + b'"}'
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.status_code == 413
    reported = "Failed to buffer the request body: length limit exceeded"
    assert response.text == (
        f"{reported}. Allowed: 10000 bytes. The limit is set by the server's --payload-limit"
    )
    settings.strict_tgi = True
    assert (await client.post("/generate", content=body, headers=JSON)).text == reported


async def test_a_body_of_the_limit_is_read(client: httpx.AsyncClient, settings: Settings) -> None:
    body = b'{"inputs": "Hi"}'.ljust(settings.payload_limit)
    assert (await client.post("/generate", content=body, headers=JSON)).status_code == 200


async def test_a_chunked_body_is_given_up_at_the_limit(
    live: httpx.AsyncClient, settings: Settings
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1000:
            sent += 1
            yield b" " * settings.payload_limit

    response = await live.post("/generate", content=endless(), headers=JSON)
    assert response.status_code == 413


async def test_a_surrogate_pair_is_one_character(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = b'{"inputs": "\\ud83d\\ude00"}'
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.headers["x-compute-characters"] == "1"
    assert len(engine.requests[0].prompt) == 4


@pytest.mark.parametrize("length", ["99999999999", "9" * 25])
async def test_a_body_that_is_declared_too_long_is_not_waited_for(
    client: httpx.AsyncClient, length: str
) -> None:
    headers = {**JSON, "content-length": length}
    response = await client.post("/generate", content=b"{}", headers=headers)
    assert response.status_code == 413


async def test_a_body_that_does_not_arrive_in_time_is_a_408_and_the_connection_ends(
    address: tuple[str, int], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(
        b"POST /generate HTTP/1.1\r\nhost: tiny\r\ncontent-type: application/json\r\n"
        b'content-length: 16\r\n\r\n{"inputs": '
    )
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 408 ")
    assert answer.endswith("The request body did not arrive within 0.05 seconds")
    assert engine.requests == []


async def test_a_byte_order_mark_is_passed_over(client: httpx.AsyncClient) -> None:
    body = b"\xef\xbb\xbf" + b'{"inputs": "Hi"}'
    assert (await client.post("/generate", content=body, headers=JSON)).status_code == 200


async def test_a_compressed_body_is_a_415_that_says_so(client: httpx.AsyncClient) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    response = await client.post("/generate", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "identity"
    assert "gzip" in response.text

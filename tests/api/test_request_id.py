"""`x-request-id` in replies and records."""

from __future__ import annotations

import logging
import re

import httpx
import pytest
from starlette.applications import Starlette

from tests.doubles.fake_engine import FakeEngine
from tgi_async.telemetry.observer import Observer

MADE = re.compile(r"req_[0-9a-f]{32}")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("POST", "/generate", 200),
        ("POST", "/generate_stream", 200),
        ("POST", "/v1/completions", 400),
        ("GET", "/nothing", 404),
        ("GET", "/generate", 405),
    ],
)
async def test_every_reply_has_one(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    body = {"inputs": "Hi"} if method == "POST" else None
    first = await client.request(method, path, json=body)
    second = await client.request(method, path, json=body)
    assert first.status_code == status
    assert MADE.fullmatch(first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    given = await client.request(method, path, json=body, headers={"x-request-id": "My-1"})
    assert given.headers.get_list("x-request-id") == ["My-1"]


@pytest.mark.parametrize("given", ["a", "0" * 128, "a/b:c=d+e@f,{g}~!", "req_1"])
async def test_what_can_be_one_is_taken(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/health", headers={"x-request-id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b" ", b"a b", b"0" * 129, b"\xff", b"a\tb", "é".encode()])
async def test_what_cannot_be_one_is_replaced(client: httpx.AsyncClient, given: bytes) -> None:
    response = await client.get("/health", headers={b"x-request-id": given})
    assert MADE.fullmatch(response.headers["x-request-id"])


async def test_requests_may_have_the_same_or_one_that_begins_another(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for given in ("a", "a", "ab"):
        response = await live.post(
            "/generate", json={"inputs": "Hi"}, headers={"x-request-id": given}
        )
        assert response.status_code == 200
        assert response.headers["x-request-id"] == given
    assert len(engine.requests) == 3


async def test_the_log_has_it(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    transport = httpx.ASGITransport(Observer(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        headers = {"x-request-id": "mine"}
        await client.post("/generate", json={"inputs": "Hi"}, headers=headers)
        other = await client.post("/generate", json={"inputs": ""})
    seen = [line.request for line in caplog.records if hasattr(line, "request")]
    assert [one.request_id for one in seen] == ["mine", other.headers["x-request-id"]]

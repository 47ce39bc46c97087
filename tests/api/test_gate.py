"""What is answered while the model loads."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tests.api.waiting import until
from tgi_async.api.dialect import TGI
from tgi_async.api.gate import Gate

PAGE = {"origin": "https://page.example"}


def client_of(gate: Gate) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate")


async def test_liveness_is_there_from_the_beginning() -> None:
    async with client_of(Gate(kserve=True)) as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/v2/health/live")).json() == {"live": True}
    async with client_of(Gate()) as client:
        assert (await client.get("/v2/health/live")).status_code == 503


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/ping", "/", "/info", "/nothing"])
async def test_all_else_says_what_is_loading(path: str) -> None:
    gate = Gate()
    gate.phase("loading weights")
    async with client_of(gate) as client:
        reply = await client.get(path)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert reply.headers["x-request-id"]
    assert reply.json() == {
        "error": "The server is not ready yet: loading weights, for 0 s so far",
        "error_type": "healthcheck",
        "phase": "loading weights",
        "seconds": 0.0,
    }


async def test_openai_routes_say_it_in_openais_form() -> None:
    async with client_of(Gate()) as client:
        error = (await client.post("/v1/chat/completions", content=b"{}")).json()["error"]
    assert error.pop("message").startswith("The server is not ready yet: starting")
    assert error == {"type": "server_error", "param": None, "code": "loading"}
    async with client_of(Gate(dialect=TGI)) as client:
        reply = await client.post("/v1/chat/completions", content=b"{}")
    assert reply.json()["error_type"] == "healthcheck"


async def test_browsers_may_read_it() -> None:
    async with client_of(Gate(["https://page.example"])) as client:
        reply = await client.get("/health", headers=PAGE)
        assert reply.headers["access-control-allow-origin"] == PAGE["origin"]
        asked = PAGE | {"access-control-request-method": "POST"}
        assert (await client.options("/generate", headers=asked)).status_code == 200


async def test_then_the_application_answers_until_connections_are_given_back() -> None:
    gate = Gate()
    async with client_of(gate) as client:
        gate.open(PlainTextResponse("here"))
        reply = await client.get("/health")
        assert (reply.text, "connection" in reply.headers) == ("here", False)
        gate.close_connections()
        reply = await client.get("/health")
        assert (reply.text, reply.headers["connection"]) == ("here", "close")


async def test_requests_are_held_for_a_server_that_takes_anothers_place() -> None:
    gate = Gate()
    gate.hold(2)
    async with client_of(gate) as client:
        held = [asyncio.create_task(client.post("/generate")) for _ in range(2)]
        await asyncio.sleep(0)
        await until(lambda: gate._n_held == 2)
        assert (await client.post("/generate")).status_code == 503  # as many as may
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
        gate.open(PlainTextResponse("here"))
        assert [(await one).text for one in held] == ["here", "here"]


async def test_what_is_held_gets_a_503_where_the_server_never_gets_ready() -> None:
    gate = Gate()
    give_up = gate.hold(2)
    async with client_of(gate) as client:
        held = asyncio.create_task(client.post("/generate"))
        await until(lambda: gate._n_held == 1)
        give_up()
        assert (await held).status_code == 503

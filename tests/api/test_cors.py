"""From which pages browsers may call, and what they may read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Settings
from tests.doubles.fake_engine import FakeEngine

BODY = {"inputs": "Hi"}
PAGE = "https://page.example"
OPENAI = "authorization, content-type, openai-beta, x-stainless-os, x-stainless-retry-count"


async def preflight(
    client: httpx.AsyncClient,
    path: str = "/v1/chat/completions",
    *,
    origin: str = PAGE,
    asked: str | None = OPENAI,
    **more: str,
) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", **more}
    if asked is not None:
        headers["access-control-request-headers"] = asked
    return await client.options(path, headers=headers)


@pytest.mark.parametrize("origin", [PAGE, "null", "http://localhost:5173"])
async def test_any_page_may_ask_with_any_header(client: httpx.AsyncClient, origin: str) -> None:
    response = await preflight(client, origin=origin)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-allow-headers"] == OPENAI
    assert int(response.headers["access-control-max-age"]) > 0


async def test_a_preflight_without_headers_is_allowed(client: httpx.AsyncClient) -> None:
    assert (await preflight(client, asked=None)).status_code == 200


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_methods_are_allowed_even_where_they_are_a_405(
    client: httpx.AsyncClient, method: str
) -> None:
    response = await preflight(client, **{"access-control-request-method": method})
    assert method in response.headers["access-control-allow-methods"]


async def test_a_list_of_headers_without_end_is_refused(client: httpx.AsyncClient) -> None:
    assert (await preflight(client, asked="x, " * 2000)).status_code == 400


async def test_replies_may_be_read_with_all_their_headers(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", json=BODY, headers={"origin": PAGE})
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": {}}, 422),
        ({"content": b"{"}, 415),
        ({"json": {"inputs": "x" * 20_000}}, 413),
        ({"json": BODY | {"parameters": {"max_new_tokens": 0}}}, 422),
    ],
)
async def test_errors_may_be_read(
    client: httpx.AsyncClient, request_: dict[str, Any], status: int
) -> None:
    response = await client.post("/generate", headers={"origin": PAGE}, **request_)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "*"


class TestWithAKey:
    @pytest.fixture(autouse=True)
    def key(self, settings: Settings) -> None:
        settings.api_key = "secret"

    async def test_a_preflight_does_not_need_it(self, client: httpx.AsyncClient) -> None:
        assert (await preflight(client, "/generate")).status_code == 200

    async def test_its_absence_may_be_read(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/generate", json=BODY, headers={"origin": PAGE})
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == "*"


async def test_an_overloaded_or_broken_server_may_be_read(
    client: httpx.AsyncClient, engine: FakeEngine, settings: Settings
) -> None:
    engine.ready = False
    response = await client.get("/health", headers={"origin": PAGE})
    assert response.status_code == 503
    assert response.headers["access-control-allow-origin"] == "*"
    response = await client.get("/nothing", headers={"origin": PAGE})
    assert response.status_code == 404
    assert response.headers["access-control-allow-origin"] == "*"


async def test_who_is_no_browser_gets_nothing_added(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", json=BODY)
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_every_page_is_not_let_into_a_private_network(client: httpx.AsyncClient) -> None:
    response = await preflight(client, **{"access-control-request-private-network": "true"})
    assert response.status_code == 200
    assert "access-control-allow-private-network" not in response.headers


class TestWithOrigins:
    @pytest.fixture(autouse=True)
    def allow_two(self, settings: Settings) -> None:
        settings.cors_allow_origin = (PAGE, "null")

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [(PAGE, PAGE), ("null", "null"), ("https://other.example", None), (f"{PAGE}:8443", None)],
    )
    async def test_only_these_are_allowed(
        self, client: httpx.AsyncClient, origin: str, allowed: str | None
    ) -> None:
        asked = await preflight(client, origin=origin)
        assert asked.status_code == (400 if allowed is None else 200)
        for response in (
            asked,
            await client.post("/generate", json=BODY, headers={"origin": origin}),
            await client.post("/generate", json={}, headers={"origin": origin}),
        ):
            assert response.headers.get("access-control-allow-origin") == allowed
            assert "origin" in response.headers["vary"]

    async def test_caches_learn_that_origins_differ(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/info")).headers["vary"] == "origin"

    async def test_they_are_let_into_a_private_network(self, client: httpx.AsyncClient) -> None:
        response = await preflight(client, **{"access-control-request-private-network": "true"})
        assert response.headers["access-control-allow-private-network"] == "true"


class TestWithAStarAmongOrigins:
    @pytest.fixture(autouse=True)
    def allow_any(self, settings: Settings) -> None:
        settings.cors_allow_origin = ("*",)

    async def test_any_is_allowed(self, client: httpx.AsyncClient) -> None:
        assert (await preflight(client)).headers["access-control-allow-origin"] == "*"

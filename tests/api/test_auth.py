"""The API key."""

from __future__ import annotations

import httpx
import pytest

from tests.api.conftest import Settings
from tests.doubles.fake_engine import FakeEngine

BODY = {"inputs": "Hi"}
KEYED = ["/", "/generate", "/generate_stream", "/tokenize"]


@pytest.fixture(autouse=True)
def api_key(settings: Settings) -> None:
    settings.api_key = "Sécret"


@pytest.mark.parametrize("path", KEYED)
@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer sécret", "Bearer Sécre", "Basic Sécret", "Sécret"],
)
async def test_without_the_key_there_is_an_empty_401(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, header: str | None
) -> None:
    headers = {} if header is None else {b"authorization": header.encode()}
    response = await client.post(path, json=BODY, headers=headers)
    assert (response.status_code, response.content) == (401, b"")
    assert engine.requests == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_openai_routes_need_the_key_too(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path, json={})).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_with_the_key_the_scheme_may_be_in_any_case(
    client: httpx.AsyncClient, scheme: str
) -> None:
    headers = {b"authorization": f"{scheme} Sécret".encode()}
    assert (await client.post("/generate", json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/info", "/v1/models", "/metrics"])
async def test_the_operators_routes_need_no_key(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


async def test_a_body_is_not_read_before_the_key_is_known(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", content=b"{", headers={"content-type": "text/plain"})
    assert response.status_code == 401


class TestStrict:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    @pytest.mark.parametrize("key", ["Sécret", "sécret", "SÉCRET"])
    async def test_the_key_may_be_in_any_case(self, client: httpx.AsyncClient, key: str) -> None:
        headers = {b"authorization": f"bearer {key}".encode()}
        assert (await client.post("/generate", json=BODY, headers=headers)).status_code == 200

    @pytest.mark.parametrize("key", [b"secret", b"\xff", b"S\xe9cret"])
    async def test_another_key_is_a_401(self, client: httpx.AsyncClient, key: bytes) -> None:
        headers = {b"authorization": b"bearer " + key}
        assert (await client.post("/generate", json=BODY, headers=headers)).status_code == 401

"""Which routes there are, who may call them and from where."""

from __future__ import annotations

import httpx
import pytest

BODY = {"inputs": "Hi"}


async def test_an_unknown_route_is_an_empty_404(client: httpx.AsyncClient) -> None:
    response = await client.get("/nothing")
    assert (response.status_code, response.content) == (404, b"")


async def test_a_trailing_slash_is_another_route(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/generate"), ("PUT", "/"), ("POST", "/info")]
)
async def test_another_method_is_an_empty_405(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.content) == (405, b"")


async def test_a_405_names_the_methods_of_the_path(client: httpx.AsyncClient) -> None:
    assert (await client.put("/")).headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert (await client.get("/generate")).headers["allow"] == "OPTIONS, POST"


async def test_options_name_the_methods(client: httpx.AsyncClient) -> None:
    response = await client.options("/")
    assert (response.status_code, response.headers["allow"]) == (200, "GET, HEAD, OPTIONS, POST")
    assert (await client.options("/nothing")).status_code == 404

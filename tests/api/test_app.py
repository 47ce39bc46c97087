"""Which routes there are, who may call them and from where."""

from __future__ import annotations

import pytest

BODY = {"inputs": "Hi"}


async def test_an_unknown_route_is_an_empty_404(client):
    response = await client.get("/nothing")
    assert (response.status_code, response.content) == (404, b"")


async def test_a_trailing_slash_is_another_route(client):
    assert (await client.get("/health/")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/generate"), ("PUT", "/"), ("POST", "/info")]
)
async def test_another_method_is_an_empty_405(client, method, path):
    response = await client.request(method, path)
    assert (response.status_code, response.content) == (405, b"")


async def test_a_405_names_the_methods_of_the_path(client):
    assert (await client.put("/")).headers["allow"] == "GET, HEAD, POST"
    assert (await client.get("/generate")).headers["allow"] == "POST"


async def test_browsers_may_call_from_anywhere_by_default(client):
    headers = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization",
    }
    response = await client.options("/generate", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    assert "authorization" in response.headers["access-control-allow-headers"].lower()


class TestWithOrigins:
    @pytest.fixture(autouse=True)
    def allow_one(self, settings):
        settings.cors_allow_origin = ("https://page.example",)

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [("https://page.example", "https://page.example"), ("https://other.example", None)],
    )
    async def test_only_these_are_allowed(self, client, origin, allowed):
        response = await client.post("/generate", json=BODY, headers={"origin": origin})
        assert response.headers.get("access-control-allow-origin") == allowed

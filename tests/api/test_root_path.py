"""A server below a path of another site."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import Settings
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api.app import create_app
from tgi_async.api.root_path import RootPath
from tgi_async.errors import StartError
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.tokenizer import Tokenizer


@pytest.fixture
def llm(settings: Settings) -> None:
    settings.root_path = "/llm"


@pytest.fixture
def below(llm: None, app: Starlette) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(RootPath(app, "/llm"))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize("prefix", ["/llm", ""], ids=["not stripped", "stripped"])
async def test_routes_are_found_with_the_path_and_without_it(
    below: httpx.AsyncClient, prefix: str
) -> None:
    for path in ("/health", "/info", "/v1/models", "/v1/models/tiny/model", "/docs"):
        assert (await below.get(prefix + path)).status_code == 200, path
    reply = await below.post(f"{prefix}/generate", json={"inputs": "Hi"})
    assert reply.status_code == 200


async def test_the_path_alone_is_the_top(below: httpx.AsyncClient) -> None:
    assert (await below.get("/llm")).status_code == 200
    assert (await below.get("/llm/")).status_code == 200
    assert (await below.get("/llmx/health")).status_code == 404
    assert (await below.get("/llm/llm/health")).status_code == 404


async def test_an_error_has_the_form_of_its_route(below: httpx.AsyncClient) -> None:
    error = (await below.get("/llm/v1/nothing")).json()["error"]
    assert error["code"] == "unknown_url"


async def test_the_document_and_its_page_lead_there(below: httpx.AsyncClient) -> None:
    found = (await below.get("/llm/api-doc/openapi.json")).json()
    assert found["servers"] == [{"url": "/llm"}]
    assert "/generate" in found["paths"]
    assert 'href="/llm/api-doc/openapi.json"' in (await below.get("/llm/docs")).text


async def test_without_it_there_is_no_server_in_the_document(client: httpx.AsyncClient) -> None:
    assert "servers" not in (await client.get("/api-doc/openapi.json")).json()


@pytest.mark.parametrize("path", ["/v1", "/generate", "/v1/chat"])
def test_a_path_that_begins_a_route_is_refused(
    settings: Settings, engine: FakeEngine, tokenizer: Tokenizer, path: str
) -> None:
    settings.root_path = path
    with pytest.raises(StartError, match=f"--root-path must not be the beginning.*{path}, as in /"):
        create_app(
            engine=engine,
            tokenizer=tokenizer,
            chat_template=None,
            limits=settings.limits,
            metrics=Metrics(max_input_tokens=1, max_total_tokens=2, max_batch_total_tokens=3),
        )

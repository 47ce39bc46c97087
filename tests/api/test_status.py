"""`/health`, `/ping`, `/info`, `/v1/models` and `/metrics`."""

from __future__ import annotations

import time
from importlib.metadata import version

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import Api, EventsOf, Settings
from tests.doubles.fake_engine import FakeEngine

READY = ["/health", "/health/ready", "/ping", "/"]


@pytest.mark.parametrize("path", [*READY, "/health/live"])
async def test_health_is_empty_where_all_is_well(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", READY)
async def test_health_without_a_worker_says_when_to_ask_again(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    engine.ready = False
    response = await client.get(path)
    assert response.status_code == 503
    assert response.json() == {"error": "unhealthy", "error_type": "healthcheck"}
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_process_lives_while_a_worker_restarts(
    client: httpx.AsyncClient, engine: FakeEngine, method: str
) -> None:
    engine.ready = False
    assert (await client.request(method, "/health/live")).status_code == 200
    assert (await client.request(method, "/health/ready")).status_code == 503


async def test_requests_are_taken_while_the_worker_restarts(api: Api, engine: FakeEngine) -> None:
    engine.ready = False
    assert (await api.generate("Hi")).status_code == 200


async def test_info(client: httpx.AsyncClient) -> None:
    assert (await client.get("/info")).json() == {
        "model_id": "tiny/model",
        "model_sha": "abc123",
        "model_pipeline_tag": None,
        "max_concurrent_requests": 4,
        "max_best_of": 3,
        "max_stop_sequences": 2,
        "max_input_tokens": 100,
        "max_total_tokens": 128,
        "validation_workers": 2,
        "max_client_batch_size": 3,
        "router": "text-generation-router",
        # What TGI's clients compare with the version that a feature came in.
        "version": "3.3.7",
        "tgi_async_version": version("tgi-async"),
        "quantization": None,
        "weight_bytes": 1000,
        "kv_cache_dtype": "bfloat16",
        "speculate": 0,
        "sha": None,
        "docker_label": None,
    }


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of an image that knows what it was built from."""
    monkeypatch.setenv("TGI_ASYNC_GIT_SHA", "0123abcd")
    monkeypatch.setenv("TGI_ASYNC_DOCKER_LABEL", "sha-0123abc")


async def test_info_and_fingerprints_name_the_image(image: None, api: Api) -> None:
    info = (await api.client.get("/info")).json()
    assert (info["sha"], info["docker_label"]) == ("0123abcd", "sha-0123abc")
    assert (await api.chat("Hi")).json()["system_fingerprint"].endswith("-sha-0123abc")


async def test_info_names_the_quantization(client: httpx.AsyncClient, settings: Settings) -> None:
    settings.quantization = "gptq, 4 bits in groups of 128 inputs"
    assert (await client.get("/info")).json()["quantization"] == settings.quantization


class TestModels:
    @pytest.fixture(autouse=True)
    def names(self, settings: Settings) -> None:
        settings.model_names = ("first", "owner/second", "/a folder/third")

    async def test_all_names_are_listed(self, client: httpx.AsyncClient) -> None:
        found = (await client.get("/v1/models")).json()
        assert found["object"] == "list"
        assert [one["id"] for one in found["data"]] == ["first", "owner/second", "/a folder/third"]

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("first", "first"),
            ("owner/second", "owner/second"),
            ("owner%2Fsecond", "owner/second"),
            ("/a%20folder/third", "/a folder/third"),
            ("%2Fa%20folder%2Fthird", "/a folder/third"),
        ],
    )
    async def test_each_can_be_asked_for(
        self, client: httpx.AsyncClient, path: str, name: str
    ) -> None:
        before = time.time()
        found = (await client.get(f"/v1/models/{path}")).json()
        assert 0 < before - found.pop("created") < 3600
        assert found == {
            "id": name,
            "object": "model",
            "owned_by": "tiny/model",
            "max_model_len": 128,
        }
        assert (await client.get(f"/v1/models/{path}")).json() in (
            await client.get("/v1/models")
        ).json()["data"]

    @pytest.mark.parametrize("name", ["fir", "owner", "first/", "FIRST", "tiny/model", ""])
    async def test_another_name_is_not_there(self, client: httpx.AsyncClient, name: str) -> None:
        response = await client.get(f"/v1/models/{name}")
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["message"].startswith(f"The model `{name}` does not exist. Its names: first, ")
        assert (error["code"], error["param"]) == ("model_not_found", "model")

    @pytest.mark.parametrize(
        ("asked", "reported"),
        [
            (None, "first"),
            ("", "first"),
            ("tgi", "first"),
            ("first", "first"),
            ("owner/second", "first"),
            ("gpt-4", "gpt-4"),
        ],
    )
    async def test_replies_have_the_first_name(
        self, api: Api, events: EventsOf, asked: str | None, reported: str
    ) -> None:
        assert (await api.chat("Hi", model=asked)).json()["model"] == reported
        assert events(await api.chat("Hi", model=asked, stream=True))[0]["model"] == reported
        assert (await api.complete("Hi", model=asked)).json()["model"] == "first"

    @pytest.mark.usefixtures("as_tgi")
    async def test_as_tgi_there_is_no_more_to_say(self, client: httpx.AsyncClient) -> None:
        [one, *_] = (await client.get("/v1/models")).json()["data"]
        assert one == {"id": "first", "object": "model", "created": 0, "owned_by": "tiny/model"}
        response = await client.get("/v1/models/other")
        assert (response.status_code, response.content) == (404, b"")


async def test_metrics_have_the_engines_gauges(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    values = {name: family.samples[0].value for name, family in families.items() if family.samples}
    assert values["tgi_queue_size"] == 2
    assert values["tgi_batch_current_size"] == 3
    assert values["tgi_batch_current_max_tokens"] == 99
    assert values["tgi_async_used_blocks"] == 7
    assert values["tgi_async_cached_blocks"] == 4
    assert values["tgi_async_total_blocks"] == 64
    assert values["tgi_async_block_size"] == 16
    assert values["tgi_async_worker_restarts"] == 1

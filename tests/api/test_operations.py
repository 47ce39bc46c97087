"""`/health`, `/ping`, `/info`, `/v1/models` and `/metrics`."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from prometheus_client.parser import text_string_to_metric_families

READY = ["/health", "/health/ready", "/ping", "/"]


@pytest.mark.parametrize("path", [*READY, "/health/live"])
async def test_health_is_empty_where_all_is_well(client, path):
    response = await client.get(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", READY)
async def test_health_without_a_worker_says_when_to_ask_again(client, engine, path):
    engine.ready = False
    response = await client.get(path)
    assert response.status_code == 503
    assert response.json() == {"error": "unhealthy", "error_type": "healthcheck"}
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_process_lives_while_a_worker_restarts(client, engine, method):
    engine.ready = False
    assert (await client.request(method, "/health/live")).status_code == 200
    assert (await client.request(method, "/health/ready")).status_code == 503


async def test_requests_are_taken_while_the_worker_restarts(api, engine):
    engine.ready = False
    assert (await api.generate("Hi")).status_code == 200


async def test_info(client):
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
        "version": version("tgi-async"),
        "sha": None,
        "docker_label": None,
    }


async def test_models(client):
    assert (await client.get("/v1/models")).json() == {
        "object": "list",
        "data": [{"id": "tiny/model", "object": "model", "created": 0, "owned_by": "tiny/model"}],
    }


async def test_metrics_have_the_engines_gauges(client):
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
    assert values["tgi_async_worker_restarts"] == 1

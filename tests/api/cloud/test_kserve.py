"""KServe's V2 protocol, behind its setting."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import httpx
import pytest

from tests.api.conftest import Settings
from tests.doubles.fake_engine import FakeEngine

MODEL = "/v2/models/tiny/versions/1"
PATHS = [MODEL, f"{MODEL}/ready", "/v2/health/ready", "/v2/health/live", "/v2"]


@pytest.fixture(autouse=True)
def kserve(settings: Settings) -> None:
    settings.kserve = True


def body(*texts: str, **fields: Any) -> dict[str, Any]:
    inputs = [
        {"name": "text", "shape": [1, 2], "datatype": "BYTES", "data": list(text.encode())}
        for text in texts
    ]
    outputs = [{"name": f"out{place}"} for place, _ in enumerate(texts)]
    return {"id": "7", "inputs": inputs, "outputs": outputs, **fields}


async def infer(client: httpx.AsyncClient, *texts: str, **fields: Any) -> httpx.Response:
    return await client.post(f"{MODEL}/infer", json=body(*texts, **fields))


async def test_each_input_has_its_output(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.batches = [engine.batches[0]]
    data = list(b"Hel")
    assert (await infer(client, "Hé", "Ho")).json() == {
        "id": "7",
        "outputs": [
            {"name": name, "shape": [1, 3], "datatype": "BYTES", "data": data}
            for name in ("out0", "out1")
        ],
    }
    assert sorted(len(request.prompt) for request in engine.requests) == [2, 3]


async def test_parameters_are_those_of_generate(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await infer(client, "Hi")
    await infer(client, "Hi", parameters={"max_new_tokens": 3})
    first, second = engine.requests
    assert first.sampling.do_sample
    assert not second.sampling.do_sample
    assert second.max_new_tokens == 3


async def test_outputs_that_are_not_as_many_as_inputs_are_refused(
    client: httpx.AsyncClient,
) -> None:
    response = await infer(client, "Hi", outputs=[])
    assert response.status_code == 422
    assert response.json() == {
        "error": "Inputs and outputs length mismatch",
        "error_type": "length mismatch",
    }


async def test_no_inputs_are_refused(client: httpx.AsyncClient) -> None:
    response = await infer(client)
    assert response.status_code == 422
    assert response.json()["error"] == "Input validation error: `inputs` cannot be empty"


async def test_bytes_that_are_no_text_are_refused(client: httpx.AsyncClient) -> None:
    given = body("Hi")
    given["inputs"][0]["data"] = [255]
    response = await client.post(f"{MODEL}/infer", json=given)
    assert response.status_code == 422
    assert response.json() == {
        "error": "`inputs[0].data` is not UTF-8: invalid start byte",
        "error_type": "utf8",
    }


@pytest.mark.parametrize("byte", [-1, 256, 0.5, "a"])
async def test_what_is_no_byte_is_a_422(client: httpx.AsyncClient, byte: float | str) -> None:
    given = body("Hi")
    given["inputs"][0]["data"] = [byte]
    assert (await client.post(f"{MODEL}/infer", json=given)).status_code == 422


async def test_a_broken_rule_is_reported(client: httpx.AsyncClient) -> None:
    response = await infer(client, "Hi", parameters={"top_k": 0})
    assert response.status_code == 422
    assert response.json()["error"].endswith("`top_k` must be strictly positive")


async def test_with_strict_tgi_it_says_nothing(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    settings.strict_tgi = True
    response = await infer(client, "Hi", parameters={"top_k": 0})
    assert response.status_code == 500
    assert response.json()["error_type"] == "Incomplete generation"


async def test_metadata(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2")).json() == {
        "name": "text-generation-inference",
        "version": version("tgi-async"),
        "extensions": ["health", "models", "metrics"],
    }
    assert (await client.get(MODEL)).json() == {
        "name": "tiny",
        "version": "1",
        "extensions": ["infer", "ready"],
    }


async def test_live_and_ready(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        assert (await client.get(path)).json() == {"live": True, "ready": True}
    engine.ready = False
    assert (await client.get("/v2/health/live")).status_code == 200
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        response = await client.get(path)
        assert response.status_code == 503
        assert "retry-after" in response.headers


class TestWithoutTheSetting:
    @pytest.fixture(autouse=True)
    def off(self, settings: Settings, kserve: None) -> None:
        settings.kserve = False

    @pytest.mark.parametrize("path", PATHS)
    async def test_its_routes_are_not_there(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.get(path)).status_code == 404
        assert (await infer(client, "Hi")).status_code == 404

"""Who may call which route, and routes that the environment names."""

from __future__ import annotations

import httpx
import pytest

from tests.api.conftest import Settings
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api.app import create_app
from tgi_async.errors import StartError
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.tokenizer import Tokenizer

INSTANCES = {"instances": [{"inputs": "Hi"}]}
GUARDED = [
    "/",
    "/generate",
    "/generate_stream",
    "/v1/chat/completions",
    "/v1/completions",
    "/vertex",
    "/invocations",
    "/tokenize",
    "/detokenize",
]
OPEN_IN_TGI = ["/chat_tokenize", "/v2/models/m/versions/1/infer"]
OPEN = [
    "/",
    "/health",
    "/health/ready",
    "/health/live",
    "/ping",
    "/info",
    "/metrics",
    "/v1/models",
    "/docs",
    "/docs/",
    "/api-doc/openapi.json",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/m/versions/1",
    "/v2/models/m/versions/1/ready",
]


class TestWithKey:
    @pytest.fixture(autouse=True, params=[False, True], ids=["default", "strict"])
    def key(self, settings: Settings, request: pytest.FixtureRequest) -> None:
        settings.api_key = "secret"
        settings.kserve = True
        settings.strict_tgi = request.param

    @pytest.mark.parametrize("path", GUARDED)
    async def test_what_generates_is_guarded(
        self, client: httpx.AsyncClient, settings: Settings, path: str
    ) -> None:
        assert (await client.post(path, json={})).status_code == 401
        headers = {"authorization": "Bearer secret"}
        wrong = 400 if path.startswith("/v1/") and not settings.strict_tgi else 422
        assert (await client.post(path, json={}, headers=headers)).status_code == wrong

    @pytest.mark.parametrize("path", OPEN_IN_TGI)
    async def test_what_tgi_leaves_open_is_guarded_but_for_strict_tgi(
        self, client: httpx.AsyncClient, settings: Settings, path: str
    ) -> None:
        expected = 422 if settings.strict_tgi else 401
        assert (await client.post(path, json={})).status_code == expected

    @pytest.mark.parametrize("path", OPEN)
    async def test_what_tells_of_the_server_is_open(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        assert (await client.get(path)).status_code == 200


class TestOnVertexAI:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
        settings.api_key = "secret"
        monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict/here")
        monkeypatch.setenv("AIP_HEALTH_ROUTE", "/alive")

    async def test_its_routes_are_there_and_need_no_key(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/predict/here", json=INSTANCES)
        assert response.json() == {"predictions": ["Hello there"]}
        assert (await client.get("/alive")).status_code == 200

    async def test_the_others_stay(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/vertex", json=INSTANCES)).status_code == 401
        assert (await client.get("/health")).status_code == 200


class TestWhereVertexAINamesARouteThatIsThere:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
        settings.api_key = "secret"
        monkeypatch.setenv("AIP_PREDICT_ROUTE", "/vertex")

    async def test_it_needs_no_key(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/vertex", json=INSTANCES)).status_code == 200


@pytest.mark.parametrize("name", ["AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"])
async def test_a_name_that_is_no_path_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    settings: Settings,
    name: str,
) -> None:
    monkeypatch.setenv(name, "predict")
    with pytest.raises(StartError, match=f"{name} must be a path that begins with a slash"):
        create_app(
            engine=engine,
            tokenizer=tokenizer,
            chat_template=None,
            limits=settings.limits,
            metrics=Metrics(max_input_tokens=1, max_total_tokens=2),
        )

"""What an error looks like: OpenAI's object below `/v1`, and TGI's bodies everywhere else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.doubles.fake_engine import FakeEngine
from tgi_async.errors import GenerationError, IncompleteGeneration, Overloaded, Unhealthy

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi"})]


def reported(response: httpx.Response) -> dict[str, Any]:
    """The object, which is all that OpenAI's clients look at."""
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


class TestBodies:
    @pytest.mark.parametrize(
        ("content", "status", "param", "message"),
        [
            (b"{", 400, None, "Failed to parse the request body as JSON: "),
            (b"[]", 400, None, "Failed to deserialize the JSON body into the target type: "),
            (b"{}", 400, "messages", "Object missing required field `messages`"),
            (b'{"messages": [{}]}', 400, "messages[0].role", "messages[0]: Object missing"),
            (b'{"messages": 3}', 400, "messages", "messages: Expected `array`"),
            (b'{"messages": [], "n": "two"}', 400, "n", "n: Expected `int | null`"),
            (b" " * 20_000, 413, None, "length limit exceeded"),
        ],
    )
    async def test_what_is_wrong_with_a_body(
        self,
        client: httpx.AsyncClient,
        content: bytes,
        status: int,
        param: str | None,
        message: str,
    ) -> None:
        response = await client.post("/v1/chat/completions", content=content, headers=JSON)
        error = reported(response)
        assert response.status_code == status
        assert message in error["message"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)

    async def test_what_is_not_declared_as_json(self, client: httpx.AsyncClient) -> None:
        headers = {"content-type": "text/plain"}
        response = await client.post("/v1/completions", content=b"{}", headers=headers)
        assert response.status_code == 415
        assert reported(response)["type"] == "invalid_request_error"


class TestRouting:
    @pytest.mark.parametrize("path", ["/v1/nothing", "/v1/", "/v1", "/v1/embeddings/x"])
    async def test_a_route_that_is_not_there(self, client: httpx.AsyncClient, path: str) -> None:
        response = await client.post(path, json={})
        assert response.status_code == 404
        error = reported(response)
        assert path in error["message"]
        assert error["code"] == "unknown_url"

    async def test_a_path_without_end_is_not_shown_whole(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/" + "a" * 5000)
        assert len(reported(response)["message"]) < 300

    async def test_another_method(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/v1/chat/completions")
        assert response.status_code == 405
        assert response.headers["allow"] == "OPTIONS, POST"
        assert "POST" in reported(response)["message"]

    @pytest.mark.parametrize(
        "path", ["/chat/completions", "/completions/", "/models", "/api/v1/chat/completions"]
    )
    async def test_a_client_whose_base_url_lacks_v1_is_gets_a_hint(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        response = await client.post(path, json={})
        assert response.status_code == 404
        assert f"{path} here" in reported(response)["message"]
        assert "ends in /v1" in reported(response)["message"]

    @pytest.mark.parametrize("path", ["/v2/nothing", "/v1x", "/v10/chat"])
    async def test_other_paths_are_answered_as_by_tgi(
        self, client: httpx.AsyncClient, path: str
    ) -> None:
        response = await client.get(path)
        assert (response.status_code, response.content) == (404, b"")


class TestKey:
    @pytest.fixture(autouse=True)
    def key(self, settings: Settings) -> None:
        settings.api_key = "secret"

    @pytest.mark.parametrize(("path", "body"), ROUTES)
    async def test_a_wrong_one_is_not_shown(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any]
    ) -> None:
        headers = {"authorization": "Bearer my-other-key"}
        response = await client.post(path, json=body, headers=headers)
        assert response.status_code == 401
        assert reported(response)["code"] == "invalid_api_key"
        assert "my-other-key" not in response.text

    async def test_none_is_distinguished(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/completions", json={})
        assert reported(response)["message"].startswith("No API key was given")


class TestWhileServing:
    @pytest.mark.parametrize(("path", "body"), ROUTES)
    @pytest.mark.parametrize(
        ("error", "status", "kind"),
        [
            (Overloaded(), 429, "rate_limit_error"),
            (Unhealthy("The server is shutting down"), 503, "server_error"),
            (GenerationError("no luck"), 424, "server_error"),
        ],
    )
    async def test_an_error_keeps_its_status(
        self,
        client: httpx.AsyncClient,
        engine: FakeEngine,
        path: str,
        body: dict[str, Any],
        error: GenerationError | Overloaded | Unhealthy,
        status: int,
        kind: str,
    ) -> None:
        engine.refusal = error
        response = await client.post(path, json=body)
        assert response.status_code == status
        assert reported(response)["type"] == kind
        assert ("retry-after" in response.headers) is (status in (429, 503))
        assert response.json()["error_type"] == error.error_type

    async def test_an_error_in_the_server(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.refusal = TypeError("bug")
        response = await client.post("/v1/completions", json={"prompt": "Hi"})
        assert response.status_code == 500
        assert reported(response)["message"] == "Internal server error"

    @pytest.mark.parametrize(("path", "body"), ROUTES)
    async def test_within_a_stream_it_is_an_event(
        self,
        client: httpx.AsyncClient,
        engine: FakeEngine,
        events: EventsOf,
        path: str,
        body: dict[str, Any],
    ) -> None:
        engine.error, engine.fail_before = IncompleteGeneration(), 1
        *_, failure, done = events(await client.post(path, json={**body, "stream": True}))
        assert done == "[DONE]"
        assert failure == {
            "error": {
                "message": "Incomplete generation",
                "type": "server_error",
                "param": None,
                "code": None,
                "http_status_code": 500,
            }
        }


class TestContextLength:
    """In the words by which clients know it, shorten the conversation and ask again."""

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_chat_that_is_too_long(self, api: Api, stream: bool) -> None:
        response = await api.chat("a" * 100, max_tokens=1, stream=stream)
        message = refusal(response)
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert response.json()["error"]["param"] == "messages"
        assert message.startswith(
            "This model's maximum context length is 128 tokens. However, "
            "your messages resulted in 119 tokens. Please reduce the length of the messages"
        )
        assert "the prompt is too long, 100 tokens are allowed" in message
        assert message.endswith("--max-input-tokens and --max-total-tokens")

    @pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
    async def test_an_answer_that_is_too_long(self, api: Api, field: str) -> None:
        response = await api.chat("a" * 20, **{field: 90})
        message = refusal(response)
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert (
            "However, you requested 129 tokens (39 in the messages, 90 in the completion). Please "
            f"reduce the length of the messages or completion (`{field}`)"
        ) in message
        assert message.endswith("--max-total-tokens")

    async def test_a_completion_that_is_too_long(self, api: Api) -> None:
        response = await api.complete("a" * 101)
        assert "your prompt resulted in 101 tokens" in refusal(response)
        response = await api.complete("a" * 100, max_tokens=2000)
        assert "you requested 2100 tokens (100 in the prompt, 2000 in" in refusal(response)
        assert response.json()["error"]["param"] == "prompt"


class TestStrict:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True
        settings.api_key = "secret"

    async def test_all_is_as_by_tgi(self, client: httpx.AsyncClient) -> None:
        headers = {"authorization": "Bearer secret"}
        path = "/v1/completions"
        response = await client.post(path, json={})
        assert (response.status_code, response.content) == (401, b"")
        response = await client.post(path, content=b"{", headers={**JSON, **headers})
        assert response.status_code == 400
        assert response.headers["content-type"].startswith("text/plain")
        response = await client.post(path, json={"prompt": "a" * 200}, headers=headers)
        assert (response.status_code, response.json()["error_type"]) == (422, "validation")
        response = await client.get("/v1/nothing")
        assert (response.status_code, response.content) == (404, b"")


class TestOnVertexAI:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict")

    async def test_its_route_is_answered_as_by_tgi(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/endpoints/1:predict", json={"instances": []})
        assert response.status_code == 422
        assert response.json()["error_type"] == "Input validation error"

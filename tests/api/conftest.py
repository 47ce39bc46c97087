from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from tests.api.tiny_tokenizer import tiny_inner, tiny_tokenizer
from tests.api.waiting import until
from tests.doubles.fake_engine import FakeEngine
from tests.doubles.fake_images import FakeImages
from tests.helpers.never_blocked import never_blocked
from tgi_async.api.app import create_app
from tgi_async.api.dialect import Dialect, dialect_of
from tgi_async.api.limits import Limits
from tgi_async.connection import Connection
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.images.images import Images
from tgi_async.keys import KeyFile
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

NO_ADVICE = SamplingDefaults()

Ask = Callable[..., Awaitable[httpx.Response]]
"""Sends a request with what it is called with to one of the OpenAI routes."""

EventsOf = Callable[[httpx.Response], list[Any]]


@dataclass
class Settings:
    """`Limits` small enough that tests reach them, and which tests may change."""

    model_id: str = "tiny/model"
    model_names: tuple[str, ...] = ("tiny/model",)
    revision: str | None = "abc123"
    model_pipeline_tag: str | None = None
    quantization: str | None = None
    weight_bytes: int = 1000
    kv_cache_dtype: str = "bfloat16"
    max_drafts: int = 0
    max_concurrent_requests: int = 4
    max_best_of: int = 3
    max_stop_sequences: int = 2
    max_top_n_tokens: int = 5
    max_input_tokens: int = 100
    max_total_tokens: int = 128
    max_client_batch_size: int = 3
    validation_workers: int = 2
    payload_limit: int = 10_000
    api_key: str | None = None
    key_file: KeyFile | None = None
    request_timeout: int | None = None
    prefix_cache_salt: str = "none"
    cors_allow_origin: tuple[str, ...] = ()
    sampling_defaults: SamplingDefaults = NO_ADVICE
    strict_tgi: bool = False
    tool_call_parser: str | None = None
    kserve: bool = False
    resume_window: int = 0
    root_path: str | None = None

    @property
    def dialect(self) -> Dialect:
        return dialect_of(strict_tgi=self.strict_tgi)

    @property
    def limits(self) -> Limits:
        """These settings, for an application that sees what a test changes afterwards."""
        return cast(Limits, self)


@pytest.fixture(scope="package", autouse=True)
def _never_blocked() -> Iterator[None]:
    with never_blocked():
        yield


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def as_tgi(settings: Settings) -> None:
    """Have `--strict-tgi`. Asked for before the application is made."""
    settings.strict_tgi = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def chat_template() -> ChatTemplate | None:
    return ChatTemplate(CHATML, {})


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


class SharedChecker(GrammarChecker):
    """Outlives the applications that use it."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def shared_checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarChecker]:
    folder = tmp_path_factory.mktemp("tiny")
    inner = tiny_inner()
    inner.save(str(folder / "tokenizer.json"))
    checker = SharedChecker(str(folder), inner.get_vocab_size(), [257], n_processes=1)
    yield checker
    GrammarChecker.close(checker)


@pytest.fixture
def checker(shared_checker: GrammarChecker) -> GrammarChecker | None:
    return shared_checker


@pytest.fixture
def chat_stop_token_ids() -> tuple[int, ...]:
    return ()


@pytest.fixture
def images() -> FakeImages | None:
    return None


@pytest.fixture
def app(
    settings: Settings,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    checker: GrammarChecker | None,
    chat_stop_token_ids: tuple[int, ...],
    images: FakeImages | None,
    monkeypatch: pytest.MonkeyPatch,
) -> Starlette:
    monkeypatch.setenv("COMPUTE_TYPE", "test-machine")
    metrics = Metrics(
        max_input_tokens=settings.max_input_tokens, max_total_tokens=settings.max_total_tokens
    )
    return create_app(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        limits=settings.limits,
        metrics=metrics,
        checker=checker,
        chat_stop_token_ids=chat_stop_token_ids,
        images=cast(Images | None, images),
    )


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to the application in this process."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        yield client


@pytest.fixture
async def address(app: Starlette) -> AsyncIterator[tuple[str, int]]:
    """Host and port of a real server."""
    config = uvicorn.Config(app, port=0, http=Connection, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[:2]
    server.should_exit = True
    await serving


@pytest.fixture
async def live(address: tuple[str, int]) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to a real server."""
    url = f"http://{address[0]}:{address[1]}"
    async with httpx.AsyncClient(base_url=url) as client:
        yield client


class Api:
    """Shorthand for requests and what comes back."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def generate(self, inputs: str = "Hi", **parameters: Any) -> httpx.Response:
        body = {"inputs": inputs, "parameters": parameters}
        return await self.client.post("/generate", json=body)

    async def generate_stream(self, inputs: str = "Hi", **parameters: Any) -> httpx.Response:
        body = {"inputs": inputs, "parameters": parameters}
        return await self.client.post("/generate_stream", json=body)

    async def chat(self, text: str = "Hi", **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def complete(self, prompt: Any = "Hi", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": prompt, **fields})

    async def metric(self, name: str) -> float:
        text = (await self.client.get("/metrics")).text
        for line in text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        return 0.0


@pytest.fixture
def api(client: httpx.AsyncClient) -> Api:
    return Api(client)


def events_of(response: httpx.Response) -> list[Any]:
    """Payloads of a stream of server-sent events; `[DONE]` stays a text."""
    pieces = response.text.split("\n\n")
    assert pieces.pop() == "", "a stream ends with an empty line"
    payloads = []
    for piece in pieces:
        assert piece.startswith("data: ")
        payload = piece.removeprefix("data: ")
        payloads.append(payload if payload == "[DONE]" else json.loads(payload))
    return payloads


def refusal(response: httpx.Response) -> str:
    """Why an OpenAI route refused a request, which its clients get in OpenAI's form."""
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    message: str = error["message"]
    return message


@pytest.fixture
def events() -> EventsOf:
    return events_of

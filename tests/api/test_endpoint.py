"""Clients that go away, at every moment, and clients that are too many, too slow or unlucky."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import Api, EventsOf, Settings
from tests.api.waiting import until, until_metric
from tests.doubles.fake_engine import FakeEngine, words
from tgi_async.api import exchange
from tgi_async.errors import Unhealthy
from tgi_async.telemetry import record
from tgi_async.telemetry.record import RequestRecord
from tgi_async.text.tokenizer import Tokenizer

BODY = {"inputs": "Hi"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
ROUTES = [
    ("/generate", BODY),
    ("/generate_stream", BODY),
    ("/", BODY),
    ("/", {**BODY, "stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/completions", {"prompt": ["Hi", "Ho"]}),
    ("/v1/completions", {"prompt": ["Hi", "Ho"], "stream": True}),
]


async def send_raw(
    address: tuple[str, int], path: str, body: Any, *, whole: bool = True
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent a request; with `whole` false, all of it but the last byte."""
    reader, writer = await asyncio.open_connection(*address)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: tiny\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + (data if whole else data[:-1]))
    await writer.drain()
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    await asyncio.sleep(0)


@pytest.mark.parametrize("wait_before", [0, 1])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_client_that_goes_away_cancels_its_generations(
    address: tuple[str, int],
    live: httpx.AsyncClient,
    engine: FakeEngine,
    app: Starlette,
    path: str,
    body: dict[str, Any],
    wait_before: int,
) -> None:
    engine.wait_before = wait_before
    _, writer = await send_raw(address, path, body)
    await engine.waiting.wait()
    await hang_up(writer)
    await until(lambda: all(generation.cancelled for generation in engine.generations))
    engine.go.set()
    # Permits are back: as many requests as are allowed at once are served.
    both = await asyncio.gather(*(live.post("/generate", json=BODY) for _ in range(4)))
    assert [response.status_code for response in both] == [200] * 4
    await until_metric(live, 'tgi_request_failure{err="dropped"} 1')


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_client_that_goes_away_leaves_nothing(
    address: tuple[str, int], engine: FakeEngine, app: Starlette, path: str, body: dict[str, Any]
) -> None:
    engine.wait_before = 0
    _, writer = await send_raw(address, path, body)
    await engine.waiting.wait()
    left = [weakref.ref(generation) for generation in engine.generations]
    engine.generations.clear()
    gc.collect()
    gc.disable()  # what a circle holds would stay for a long time
    try:
        await hang_up(writer)
        await until(lambda: all(one() is None for one in left))
    finally:
        gc.enable()


async def test_a_client_that_goes_away_while_it_is_tokenized_never_reaches_the_engine(
    address: tuple[str, int],
    live: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go = threading.Event(), threading.Event()
    encode = tokenizer.encode

    def slow_encode(text: str, **kwargs: Any) -> list[int]:
        began.set()
        go.wait(10)
        return encode(text, **kwargs)

    monkeypatch.setattr(tokenizer, "encode", slow_encode)
    _, writer = await send_raw(address, "/generate", BODY)
    await until(began.is_set)
    await hang_up(writer)
    await until_metric(live, 'tgi_request_failure{err="dropped"} 1')
    go.set()
    assert (await live.post("/generate", json=BODY)).status_code == 200
    assert len(engine.requests) == 1


async def test_a_client_that_goes_away_within_its_body_asks_for_nothing(
    address: tuple[str, int], live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    _, writer = await send_raw(address, "/generate", BODY, whole=False)
    await hang_up(writer)
    assert (await live.post("/generate", json=BODY)).status_code == 200
    assert len(engine.requests) == 1


async def test_a_request_beyond_the_permits_is_a_429_at_once(
    live: httpx.AsyncClient, engine: FakeEngine, settings: Settings
) -> None:
    engine.wait_before = 0
    held = [
        asyncio.create_task(live.post("/generate", json=BODY))
        for _ in range(settings.max_concurrent_requests)
    ]
    await until(lambda: len(engine.requests) == settings.max_concurrent_requests)
    refused = await live.post("/generate", json=BODY)
    assert refused.status_code == 429
    assert refused.json()["error"].startswith("Model is overloaded: it serves 4 requests at once")
    assert refused.json()["error_type"] == "overloaded"
    streamed = await live.post("/generate_stream", json=BODY)
    assert streamed.status_code == 200
    assert '"error_type":"overloaded"' in streamed.text
    engine.go.set()
    assert [(await response).status_code for response in held] == [200] * len(held)
    assert (await live.post("/generate", json=BODY)).status_code == 200


async def test_a_request_while_the_server_stops_is_a_503(api: Api, engine: FakeEngine) -> None:
    engine.refusal = Unhealthy("shutting down")
    response = await api.generate("Hi")
    assert response.status_code == 503
    assert response.json() == {"error": "shutting down", "error_type": "healthcheck"}
    assert "retry-after" in response.headers


async def test_best_of_takes_a_row_for_each(
    api: Api, engine: FakeEngine, settings: Settings
) -> None:
    settings.max_best_of = 9
    assert (await api.generate("Hi", best_of=4, do_sample=True)).status_code == 200
    assert (await api.generate("Hi", best_of=5, do_sample=True)).status_code == 422
    engine.reserve("other", 1, 0, lambda: None)
    assert (await api.generate("Hi", best_of=4, do_sample=True)).status_code == 429


async def test_tokens_are_counted_while_all_generations_are_taken(
    live: httpx.AsyncClient, engine: FakeEngine, settings: Settings
) -> None:
    engine.wait_before = 0
    held = [
        asyncio.create_task(live.post("/generate", json=BODY))
        for _ in range(settings.max_concurrent_requests)
    ]
    await until(lambda: len(engine.requests) == settings.max_concurrent_requests)
    assert (await live.post("/tokenize", json=BODY)).status_code == 200
    engine.go.set()
    await asyncio.gather(*held)


async def test_a_silent_stream_shows_that_it_lives(
    live: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "KEEP_ALIVE_SECONDS", 0.02)
    engine.wait_before = 1
    async with live.stream("POST", "/generate_stream", json=BODY) as response:
        pieces = response.aiter_text()
        assert (await anext(pieces)).startswith("data: ")
        assert await anext(pieces) == ":\n\n"
        assert await anext(pieces) == ":\n\n"
        engine.go.set()
        rest = "".join([piece async for piece in pieces])
    assert '"generated_text":"Hello there"' in rest


async def test_a_reply_that_is_not_a_stream_has_no_signs_of_life(
    live: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "KEEP_ALIVE_SECONDS", 0.02)
    engine.wait_before = 1
    answer = asyncio.create_task(live.post("/generate", json=BODY))
    await engine.waiting.wait()
    await asyncio.sleep(0.1)
    engine.go.set()
    assert (await answer).json() == {"generated_text": "Hello there"}


async def test_a_client_that_does_not_read_stops_its_own_stream_only(
    address: tuple[str, int], live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    piece = words("x" * 10_000)
    engine.batches = [piece] * 10_000
    reader, writer = await send_raw(address, "/v1/completions", {"prompt": "Hi", "stream": True})
    # Some of it arrives and stays in the buffers of this end, of the kernel and of the server.
    taken = await settled(lambda: engine.generations[0].place if engine.generations else 0)
    assert 0 < taken < 5_000
    engine.batches = [words("quick")]
    other = await live.post("/generate", json=BODY)
    assert other.json() == {"generated_text": "quick"}
    await hang_up(writer)
    await until(lambda: engine.generations[0].cancelled)
    assert reader is not None


async def settled(value: Callable[[], int]) -> int:
    """A number, once it has stopped changing."""
    before = -1
    async with asyncio.timeout(20):
        while (now := value()) != before or now == 0:
            before = now
            await asyncio.sleep(0.2)
    return now


async def test_an_error_in_the_server_is_a_500_and_is_logged(
    api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refusal = TypeError("bug")
    response = await api.generate("Hi")
    assert response.status_code == 500
    assert response.json() == {"error": "Internal server error", "error_type": "internal"}
    assert "by an error of the server" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "ServerError from TypeError"),
        ({"seed": "one"}, ""),
        ({"top_p": 2.0}, "Input validation error: `top_p` must be > 0.0 and < 1.0"),
    ],
)
async def test_the_record_of_a_request_has_why_it_failed(
    api: Api, engine: FakeEngine, parameters: dict[str, Any], reason: str
) -> None:
    engine.refusal = TypeError("bug")
    seen = RequestRecord({"method": "POST", "path": "/generate", "headers": []})
    before = record.enter(seen)
    await api.generate("Hi", **parameters)
    record.leave(before)
    assert seen.reason == reason


async def test_an_error_in_the_server_within_a_stream_ends_it(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.error, engine.fail_before = KeyError("bug"), 1
    assert events(await api.generate_stream("Hi"))[-1]["error_type"] == "internal"


async def test_a_server_that_is_forced_to_stop_cancels_generations(
    app: Starlette, engine: FakeEngine
) -> None:
    engine.wait_before = 0
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        request = asyncio.create_task(client.post("/generate", json=BODY))
        await engine.waiting.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert engine.generations[0].cancelled


async def test_what_was_asked_and_how_it_ended_is_counted(api: Api) -> None:
    await api.generate("Hi")
    await api.generate("Hi", temperature=-1)
    await api.chat("Hi")
    assert await api.metric("tgi_request_count") == 3
    assert await api.metric("tgi_request_success") == 2
    assert await api.metric('tgi_request_failure{err="validation"}') == 1
    assert await api.metric("tgi_request_generated_tokens_sum") == 8
    assert await api.metric("tgi_request_duration_count") == 2
    assert await api.metric("tgi_request_queue_duration_sum") == 1.0
    assert await api.metric("tgi_request_mean_time_per_token_duration_sum") == 1.0

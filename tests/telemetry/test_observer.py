from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tgi_async.errors import Overloaded
from tgi_async.telemetry.metrics import Metrics
from tgi_async.telemetry.observer import Observer
from tgi_async.telemetry.record import RequestRecord

Reported = list[tuple[str, str]]


class Collector:
    def __init__(self) -> None:
        self.seen: list[RequestRecord] = []

    def add(self, seen: RequestRecord) -> None:
        self.seen.append(seen)


class App:
    """Counts a request, lets `act` do what it will, and answers with `events`."""

    def __init__(self, act: Callable[[Metrics], None], *events: bytes, status: int = 200) -> None:
        self._act = act
        self._events = events or (b"{}",)
        self._status = status
        self._metrics = Metrics(max_input_tokens=100, max_total_tokens=200)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._act(self._metrics)
        kind = b"text/event-stream" if len(self._events) > 1 else b"application/json"
        head = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": self._status, "headers": head})
        for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body"})


def answered(metrics: Metrics) -> None:
    metrics.request_received()
    metrics.request_validated(0.25, 3, 20)
    metrics.request_generated(0.5, 2.0, 4)
    metrics.request_succeeded(3.0)


def failed(err: str, error: Exception | None = None) -> Callable[[Metrics], None]:
    def act(metrics: Metrics) -> None:
        metrics.request_received()
        metrics.request_failed(err, error)

    return act


async def ask(app: Any, method: str = "POST", path: str = "/generate") -> Collector:
    collector = Collector()
    transport = httpx.ASGITransport(Observer(app, collector))
    async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
        await client.request(method, path)
    return collector


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Callable[[], Reported]:
    """Levels and messages so far."""
    caplog.set_level(logging.INFO, "tgi_async")
    return lambda: [(one.levelname, one.getMessage()) for one in caplog.records]


async def test_a_request_that_was_answered_is_one_line(reported: Callable[[], Reported]) -> None:
    (seen,) = (await ask(App(answered))).seen
    assert reported() == [("INFO", "Success")]
    assert (seen.n_prompt, seen.n_generated, seen.status) == (3, 4, 200)
    assert (seen.validation, seen.queued, seen.inference) == (0.25, 0.5, 2.0)
    assert seen.total > 0


@pytest.mark.parametrize(
    ("err", "level"),
    [
        ("validation", "WARNING"),
        ("overloaded", "WARNING"),
        ("template", "WARNING"),
        ("dropped", "INFO"),
        ("generation", "ERROR"),
        ("incomplete", "ERROR"),
    ],
)
async def test_a_failure_is_one_line_by_whose_it_was(
    reported: Callable[[], Reported], err: str, level: str
) -> None:
    (seen,) = (await ask(App(failed(err), status=422))).seen
    assert reported() == [(level, f"Failed: {err}")]
    assert (seen.failure, seen.status, seen.succeeded) == (err, 422, False)


async def test_the_line_of_a_failure_says_what_failed(reported: Callable[[], Reported]) -> None:
    (seen,) = (await ask(App(failed("overloaded", Overloaded()), status=429))).seen
    assert reported() == [("WARNING", "Failed: overloaded: Model is overloaded")]
    assert seen.reason == "Model is overloaded"


async def test_a_stream_is_timed_to_its_first_event() -> None:
    (seen,) = (await ask(App(answered, b":\n\n", b"data: {}\n\n"))).seen
    assert seen.streamed
    assert seen.first_event_at is not None
    (seen,) = (await ask(App(answered, b":\n\n", b":\n\n"))).seen
    assert seen.first_event_at is None


async def test_what_does_not_generate_is_not_reported(reported: Callable[[], Reported]) -> None:
    assert (await ask(App(lambda metrics: None), path="/tokenize")).seen == []
    assert (await ask(App(answered), method="GET", path="/metrics")).seen == []
    assert reported() == []


async def test_a_crash_is_reported_and_goes_on_its_way(reported: Callable[[], Reported]) -> None:
    def crash(metrics: Metrics) -> None:
        metrics.request_received()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await ask(App(crash))
    assert reported() == [("ERROR", "Failed: generation")]

"""How long a request may take: what clients may ask for, and what becomes of it then."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.api.conftest import Settings, events_of
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api.timeout import timeout_of
from tgi_async.errors import ValidationError
from tgi_async.scheduler.reservations import Capacity, Reservation

BODY = {"inputs": "Hi"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
SHORT = {"x-request-timeout": "0.05"}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", BODY),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/completions", {"prompt": "Hi"}),
    ("/v1/completions", {"prompt": "Hi", "stream": True}),
    ("/vertex", {"instances": [BODY]}),
]


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(Capacity(2, 4))
    engine.wait_before = 0
    return engine


def test_a_client_can_only_shorten_it() -> None:
    assert timeout_of([], None) is None
    assert timeout_of([], 30) == 30
    assert timeout_of([b"5"], 30) == 5
    assert timeout_of([b"0.5"], None) == 0.5
    assert timeout_of([b"1e1"], None) == 10
    assert timeout_of([b"60"], 30) == 30


def test_of_several_headers_the_shortest_counts() -> None:
    assert timeout_of([b"5", b"60"], None) == 5
    assert timeout_of([b"60", b"5"], 30) == 5
    with pytest.raises(ValidationError, match="'junk'"):
        timeout_of([b"5", b"junk"], None)


async def test_a_client_does_not_undo_what_a_proxy_adds(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    headers = [("x-request-timeout", "0.05"), ("x-request-timeout", "60")]
    assert (await live.post("/generate", json=BODY, headers=headers)).status_code == 503


@pytest.mark.parametrize(
    "given",
    [
        *(b"", b"0", b"-1", b"nan", b"inf", b"1e9", b"86401", b"5s", b"\xb2", b"1" * 17),
        *(b"1,2", b"1_0", b"."),
    ],
)
def test_what_is_no_time_is_refused(given: bytes) -> None:
    with pytest.raises(ValidationError, match=r"X-Request-Timeout.* at most 86400\. Given"):
        timeout_of([given], None)


async def test_a_wrong_header_is_the_requests_own_error(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    reply = await client.post("/generate", json=BODY, headers={"x-request-timeout": "soon"})
    assert reply.status_code == 422
    assert "'soon'" in reply.json()["error"]
    assert engine.requests == []


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_what_waits_for_too_long_gets_a_503_and_is_out_of_the_queue(
    live: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    reply = await live.post(path, json=body, headers=SHORT)
    assert reply.status_code == 503
    assert "was not begun" in reply.text
    assert int(reply.headers["retry-after"]) > 0
    assert all(one.cancelled for one in engine.generations)
    assert engine.reservations.n_rows == 0


@pytest.fixture
def begun(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes runs at once."""
    reserve = engine.reservations.reserve

    def started(client: str, n_rows: int, n_bytes: int) -> tuple[Reservation, list[Reservation]]:
        found = reserve(client, n_rows, n_bytes)
        engine.reservations.start(found[0])
        return found

    monkeypatch.setattr(engine.reservations, "reserve", started)


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_what_runs_for_too_long_gets_a_504(
    live: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    reply = await live.post(path, json=body, headers=SHORT)
    assert reply.status_code == 504
    assert "took longer than 0.05 seconds" in reply.text
    assert all(one.cancelled for one in engine.generations)
    assert engine.reservations.n_rows == 0


@pytest.mark.usefixtures("begun")
async def test_a_stream_that_has_begun_ends_with_an_error_event(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.wait_before = 1
    reply = await live.post("/generate_stream", json=BODY, headers={"x-request-timeout": "0.5"})
    assert reply.status_code == 200
    assert events_of(reply)[-1]["error_type"] == "timeout"
    assert all(one.cancelled for one in engine.generations)


async def test_the_setting_holds_without_a_header(
    live: httpx.AsyncClient, engine: FakeEngine, settings: Settings
) -> None:
    settings.request_timeout = 1
    began = time.monotonic()
    reply = await live.post("/generate", json=BODY, headers={"x-request-timeout": "50"})
    assert reply.status_code == 503
    assert time.monotonic() - began >= 1


async def test_what_ends_in_time_is_not_touched(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.go.set()
    reply = await live.post("/generate", json=BODY, headers={"x-request-timeout": "30"})
    assert reply.status_code == 200

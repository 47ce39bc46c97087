"""Requests that wait for a row, that find none, and that give way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Settings, events_of
from tests.api.waiting import until
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api import admission, exchange
from tgi_async.api.admission import MOST_SECONDS, UNKNOWN_SECONDS, Turnover
from tgi_async.errors import GenerationError
from tgi_async.scheduler.reservations import Capacity
from tgi_async.text.tokenizer import Tokenizer

BODY = {"inputs": "Hi"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
ROUTES = [
    ("/generate", BODY),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/completions", {"prompt": "Hi"}),
    ("/v1/completions", {"prompt": "Hi", "stream": True}),
]
N_ROWS, N_QUEUED = 2, 4


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(Capacity(N_ROWS, N_QUEUED))
    engine.wait_before = 0
    return engine


@pytest.fixture
async def other(address: tuple[str, int]) -> AsyncIterator[httpx.AsyncClient]:
    """Another client: a connection from an address of its own."""
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    url = f"http://{address[0]}:{address[1]}"
    async with httpx.AsyncClient(base_url=url, transport=transport) as client:
        yield client


async def until_requests(engine: FakeEngine, n: int) -> None:
    await until(lambda: len(engine.requests) == n)


async def until_rows(engine: FakeEngine, n: int) -> None:
    await until(lambda: engine.reservations.n_rows == n)


async def fill(
    live: httpx.AsyncClient,
    engine: FakeEngine,
    n: int = N_ROWS + N_QUEUED,
    path: str = "/generate",
    body: dict[str, Any] = BODY,
) -> list[asyncio.Task[httpx.Response]]:
    """Requests that take all rows and places, in order."""
    asked = []
    for number in range(1, n + 1):
        asked.append(asyncio.create_task(live.post(path, json=body)))
        await until_requests(engine, number)
    return asked


async def test_more_requests_than_rows_wait_and_are_served(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    asked = await fill(live, engine)
    assert not any(one.done() for one in asked)
    engine.go.set()
    assert [(await one).status_code for one in asked] == [200] * len(asked)
    assert engine.reservations.n_rows == 0


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_what_finds_no_place_gets_a_retry_after(
    live: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    asked = await fill(live, engine)
    refused = await live.post(path, json=body)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == str(UNKNOWN_SECONDS)
    assert "--max-concurrent-requests" in refused.text
    assert "--max-queued-requests" in refused.text
    engine.go.set()
    await asyncio.gather(*asked)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_the_newest_of_a_crowd_gives_way_to_another_client(
    live: httpx.AsyncClient,
    other: httpx.AsyncClient,
    engine: FakeEngine,
    path: str,
    body: dict[str, Any],
) -> None:
    *before, newest = await fill(live, engine, path=path, body=body)
    newcomer = asyncio.create_task(other.post("/generate", json=BODY))
    reported = await newest
    assert reported.status_code == 429
    assert "retry-after" in reported.headers
    assert "its place went to a client with fewer" in reported.text
    assert not newcomer.done()
    engine.go.set()
    assert (await newcomer).status_code == 200
    assert [(await one).status_code for one in before] == [200] * len(before)
    assert engine.reservations.n_rows == 0


async def test_a_stream_of_tgi_that_gives_way_is_reported_in_an_event(
    live: httpx.AsyncClient, other: httpx.AsyncClient, engine: FakeEngine
) -> None:
    *before, newest = await fill(live, engine, path="/generate_stream")
    newcomer = asyncio.create_task(other.post("/generate", json=BODY))
    reported = events_of(await newest)
    assert reported[-1]["error_type"] == "overloaded"
    engine.go.set()
    await asyncio.gather(newcomer, *before)


async def test_what_gives_way_while_it_is_tokenized_does_not_wait_for_that(
    live: httpx.AsyncClient,
    other: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = await fill(live, engine, N_ROWS + N_QUEUED - 1)
    go = threading.Event()
    encode = tokenizer.encode

    def slow_encode(text: str, **kwargs: Any) -> list[int]:
        if text == "slow":
            go.wait(10)
        return encode(text, **kwargs)

    monkeypatch.setattr(tokenizer, "encode", slow_encode)
    newest = asyncio.create_task(live.post("/generate", json={"inputs": "slow"}))
    await until(lambda: engine.reservations.n_rows == N_ROWS + N_QUEUED)
    newcomer = asyncio.create_task(other.post("/generate", json=BODY))
    assert (await newest).status_code == 429
    go.set()
    engine.go.set()
    assert (await newcomer).status_code == 200
    await asyncio.gather(*asked)


async def test_a_crowd_that_is_tokenized_does_not_hold_up_another_client(
    live: httpx.AsyncClient,
    other: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.go.set()
    order, began, go = [], threading.Event(), threading.Event()
    encode = tokenizer.encode

    def slow_encode(text: str, **kwargs: Any) -> list[int]:
        began.set()
        go.wait(10)
        order.append(text)
        return encode(text, **kwargs)

    monkeypatch.setattr(tokenizer, "encode", slow_encode)
    asked = []
    for number in range(5):
        asked.append(asyncio.create_task(live.post("/generate", json={"inputs": f"eve {number}"})))
        await until_rows(engine, number + 1)
    await until(began.is_set)
    asked.append(asyncio.create_task(other.post("/generate", json={"inputs": "ann"})))
    await until_rows(engine, 6)
    await asyncio.sleep(0.05)  # it is off the loop's hands now
    go.set()
    assert [(await one).status_code for one in asked] == [200] * 6
    # Two threads: two of them ran already, and the next turn is hers.
    assert "ann" in order[:4]


async def test_a_stream_that_waits_for_long_shows_that_it_lives(
    live: httpx.AsyncClient,
    other: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "KEEP_ALIVE_SECONDS", 0.02)
    before = await fill(live, engine, N_ROWS + N_QUEUED - 1)
    async with live.stream(
        "POST", "/v1/completions", json={"prompt": "Hi", "stream": True}
    ) as reported:
        assert reported.status_code == 200
        pieces = reported.aiter_text()
        assert await anext(pieces) == ":\n\n"
        newcomer = asyncio.create_task(other.post("/generate", json=BODY))
        rest = "".join([piece async for piece in pieces])
    assert "Model is overloaded" in rest
    assert rest.endswith("data: [DONE]\n\n")
    engine.go.set()
    await asyncio.gather(newcomer, *before)


async def test_a_stream_that_fails_before_its_first_token_has_the_status_of_that(
    api: Api, engine: FakeEngine
) -> None:
    engine.go.set()
    engine.error, engine.fail_before = GenerationError("no luck"), 0
    for send in (api.chat, api.complete):
        reported = await send("Hi", stream=True)
        assert reported.status_code == GenerationError.status
        assert reported.headers["content-type"] == "application/json"


async def test_a_client_that_leaves_the_queue_makes_room_at_once(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    *before, newest = await fill(live, engine)
    newest.cancel()
    await until(lambda: engine.reservations.n_rows == N_ROWS + N_QUEUED - 1)
    assert engine.generations[-1].cancelled
    engine.go.set()
    await asyncio.gather(*before)


async def test_the_place_of_a_request_that_is_wrong_comes_back(
    api: Api, engine: FakeEngine
) -> None:
    engine.go.set()
    assert (await api.generate("Hi", temperature=-1)).status_code == 422
    assert (await api.generate("a" * 101)).status_code == 422
    assert engine.reservations.n_rows == 0


async def test_requests_that_did_not_run_do_not_show_how_fast_rows_become_free(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    asked = await fill(live, engine, N_ROWS + N_QUEUED - 1)
    for _ in range(20):
        assert (await live.post("/generate", json={"inputs": "a" * 101})).status_code == 422
    asked += [asyncio.create_task(live.post("/generate", json=BODY))]
    await until_rows(engine, N_ROWS + N_QUEUED)
    refused = await live.post("/generate", json=BODY)
    engine.go.set()
    await asyncio.gather(*asked)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, str(UNKNOWN_SECONDS))


class TestLikeTGI:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_what_is_refused_is_reported_in_the_words_of_tgi(
        self, live: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        asked = await fill(live, engine)
        refused = await live.post("/generate", json=BODY)
        assert refused.status_code == 429
        assert refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        streamed = await live.post("/v1/completions", json={"prompt": "Hi", "stream": True})
        assert streamed.status_code == 200
        assert "Model is overloaded" in streamed.text
        engine.go.set()
        await asyncio.gather(*asked)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class TestTurnover:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(admission, "time", clock)
        return clock

    def test_nothing_is_known_at_first(self, clock: Clock) -> None:
        turnover = Turnover()
        assert turnover.refused(1) == UNKNOWN_SECONDS
        turnover.released(1, crowded=True)
        assert turnover.refused(1) == UNKNOWN_SECONDS

    def test_those_who_are_refused_come_back_one_after_another(self, clock: Clock) -> None:
        turnover = Turnover()
        for _ in range(5):
            turnover.released(1, crowded=True)
            clock.now += 0.5
        # Four of them in 2.5 seconds.
        assert [turnover.refused(4) for _ in range(3)] == [3, 5, 8]
        for _ in range(16):
            clock.now += 0.5
            turnover.released(1, crowded=True)
        assert turnover.refused(1) == 1

    def test_no_client_is_asked_to_wait_for_longer_than_a_minute(self, clock: Clock) -> None:
        turnover = Turnover()
        for _ in range(2):
            turnover.released(1, crowded=True)
            clock.now += 1000
        assert turnover.refused(100) == turnover.refused(100) == MOST_SECONDS

    def test_what_came_back_when_nobody_waited_says_nothing_of_a_crowd(self, clock: Clock) -> None:
        turnover = Turnover()
        for _ in range(5):
            turnover.released(1, crowded=False)
            clock.now += 1000
        for _ in range(4):
            turnover.released(1, crowded=True)
            clock.now += 0.25
        assert turnover.refused(1) <= 2

    def test_no_time_is_rounded_to_more_than_a_minute(self, clock: Clock) -> None:
        turnover = Turnover()
        for clock.now in (1.0, 2.0, 3.0, 4.4):  # 4.4 + 60 - 4.4 is more than 60
            turnover.released(1, crowded=True)
        assert max(turnover.refused(50) for _ in range(9)) == MOST_SECONDS

    def test_a_pause_is_not_the_time_that_rows_took(self, clock: Clock) -> None:
        turnover = Turnover()
        for _ in range(20):
            clock.now += 0.1
            turnover.refused(1)
            turnover.released(1, crowded=True)
        turnover.released(1, crowded=False)
        # They did not come back.
        clock.now += 600
        assert [turnover.refused(1) for _ in range(3)] == [UNKNOWN_SECONDS] * 3

    def test_as_long_as_nothing_ends_clients_wait_for_as_long_again(self, clock: Clock) -> None:
        turnover = Turnover()
        waits = []
        while clock.now < 1400:
            waits.append(turnover.refused(1))
            clock.now += waits[-1]
        assert waits[:5] == [5, 5, 10, 20, 40]
        assert set(waits[5:]) == {MOST_SECONDS}
        # One that comes much later finds another crowd.
        clock.now += 2 * MOST_SECONDS
        assert turnover.refused(1) == UNKNOWN_SECONDS

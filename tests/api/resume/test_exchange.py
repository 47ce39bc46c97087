"""What becomes of a stream whose connection is lost, and who may go on with it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp

from tests.api.waiting import until
from tests.doubles.seeded_engine import SeededEngine
from tests.helpers.lossy import Connection, EventReader, continued
from tests.helpers.replica import replica
from tgi_async.api import exchange as exchange_module
from tgi_async.api.auth import KEY
from tgi_async.api.resume import exchange as resume_module
from tgi_async.api.resume.event_id import EventId
from tgi_async.errors import GenerationError
from tgi_async.keys import ApiKey
from tgi_async.tenants import TENANT
from tgi_async.wire.messages import Sampling

PATH = "/generate_stream"
BODY = {"inputs": "Hi", "parameters": {}}
CHAT_PATH = "/v1/chat/completions"
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 1}
TEXT = "0123456789" * 6


def script(sampling: Sampling) -> str:
    return TEXT


def other_script(sampling: Sampling) -> str:
    return TEXT.replace("3", "4")


@pytest.fixture
def app() -> Starlette:
    return replica(script)


@pytest.fixture
def engine(app: Starlette) -> SeededEngine:
    found: SeededEngine = app.state.engine
    return found


@pytest.fixture
def reader() -> EventReader:
    return EventReader()


def text(reader: EventReader) -> str:
    return "".join(json.loads(one)["token"]["text"] for one in reader.payloads[:-1])


async def metrics(app: Starlette) -> dict[str, int]:
    lines = app.state.streams.metrics.expose(app.state.engine).decode().splitlines()
    found = [
        line.split() for line in lines if line.startswith(("tgi_async_resumed", "tgi_request"))
    ]
    return {name: int(float(value)) for name, value in found}


def resumed(connection: Connection) -> bytes | None:
    return connection.headers.get(b"x-tgi-resumed")


async def held(app: Starlette, reader: EventReader, most: int = 1500) -> None:
    """Lose a stream in the middle, whose generation stands still from then on."""
    app.state.engine.go.clear()
    asking = asyncio.create_task(continued(app, PATH, BODY, reader, most=most))
    while not asking.done():
        app.state.engine.go.set()
        await asyncio.sleep(0)
        app.state.engine.go.clear()
    await asking


async def test_a_lost_stream_goes_on_without_being_computed_again(
    app: Starlette, engine: SeededEngine, reader: EventReader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lost = await continued(app, PATH, BODY, reader, most=1000)
    assert resumed(lost) is None
    assert reader.retry == 1000
    found = await continued(app, PATH, BODY, reader)
    assert resumed(found) == b"memory"
    assert text(reader) == TEXT
    assert (len(engine.requests), engine.n_tokens) == (1, len(TEXT) + 1)
    assert "connection was lost" in caplog.text
    assert "goes on from memory" in caplog.text
    counts = await metrics(app)
    assert counts['tgi_async_resumed_streams{how="memory"}'] == 1
    assert counts["tgi_request_count"] == 2
    assert counts["tgi_request_success"] == 1
    assert counts['tgi_request_failure{err="dropped"}'] == 1


async def test_another_replica_computes_it_again(app: Starlette, reader: EventReader) -> None:
    other = replica(script)
    await continued(app, PATH, BODY, reader, most=1000)
    n_before = len(reader.payloads)
    found = await continued(other, PATH, BODY, reader)
    assert resumed(found) == b"recomputed"
    assert text(reader) == TEXT
    assert found.received.count(b"data:") == len(TEXT) + 1 - n_before
    assert (await metrics(other))['tgi_async_resumed_streams{how="recomputed"}'] == 1


async def test_who_does_not_come_back_costs_nothing_beyond_the_window(
    app: Starlette, engine: SeededEngine, reader: EventReader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app.state.streams.window = 0.01
    await held(app, reader)
    assert len(engine.tasks) == 1
    await until(lambda: not engine.tasks)
    await until(lambda: engine.reservations.n_rows == 0)
    assert app.state.streams.n_bytes == 0
    assert "nobody came back" in caplog.text
    engine.go.set()
    found = await continued(app, PATH, BODY, reader)
    assert resumed(found) == b"recomputed"
    assert text(reader) == TEXT


async def test_who_leaves_before_the_first_event_costs_nothing_at_once(
    app: Starlette, engine: SeededEngine
) -> None:
    engine.go.clear()
    connection = Connection()
    asking = asyncio.create_task(connection.ask(app, PATH, json.dumps(BODY).encode(), {}))
    await until(lambda: bool(engine.tasks))
    connection.leave()
    await asking
    assert not engine.tasks


async def test_who_is_lost_again_while_it_is_computed_finds_it(
    app: Starlette, engine: SeededEngine, reader: EventReader
) -> None:
    await continued(app, PATH, BODY, reader, most=1000)
    other = replica(script)
    again: SeededEngine = other.state.engine
    again.go.clear()
    connection = Connection()
    headers = {"last-event-id": reader.last_id.decode()}
    asking = asyncio.create_task(connection.ask(other, PATH, json.dumps(BODY).encode(), headers))
    await until(lambda: bool(again.tasks))
    connection.leave()
    await asking
    again.go.set()
    assert resumed(await continued(other, PATH, BODY, reader)) == b"memory"
    assert text(reader) == TEXT
    assert len(again.requests) == 1


async def test_another_key_does_not_reach_a_stream_in_memory(
    app: Starlette, engine: SeededEngine, reader: EventReader
) -> None:
    await held(app, reader)
    engine.go.set()
    other = Connection()
    headers = {"last-event-id": reader.last_id.decode(), "authorization": "Bearer another"}
    await other.ask(app, PATH, json.dumps(BODY).encode(), headers)
    assert resumed(other) == b"recomputed"
    assert resumed(await continued(app, PATH, BODY, reader)) == b"memory"
    assert text(reader) == TEXT


async def test_who_has_another_key_or_tenant_does_not_go_on(
    app: Starlette, engine: SeededEngine, reader: EventReader
) -> None:
    def asked_by(name: str, tenant: str = "") -> ASGIApp:
        known = {KEY: ApiKey(name=name), TENANT: tenant}
        return lambda scope, receive, send: app({**scope, **known}, receive, send)

    await continued(asked_by("ann", "x"), PATH, BODY, reader, most=500)
    n_before = len(engine.requests)
    for other in (asked_by("bob", "x"), asked_by("ann", "y"), asked_by("ann")):
        assert (await ask(other, PATH, BODY, reader.last_id.decode())).status == 409
    assert len(engine.requests) == n_before
    assert resumed(await continued(asked_by("ann", "x"), PATH, BODY, reader)) == b"memory"
    assert text(reader) == TEXT


@pytest.mark.parametrize(("path", "body"), [(PATH, BODY), (CHAT_PATH, CHAT)])
async def test_the_newer_of_two_connections_has_the_stream(
    app: Starlette, engine: SeededEngine, path: str, body: dict[str, Any]
) -> None:
    older, newer = Connection(), Connection()
    engine.go.clear()
    first = asyncio.create_task(older.ask(app, path, json.dumps(body).encode(), {}))
    while b"id:" not in older.received:
        engine.go.set()
        await asyncio.sleep(0)
        engine.go.clear()
    await asyncio.sleep(0.01)
    reader = EventReader()
    reader.feed(older.received)
    headers = {"last-event-id": reader.last_id.decode()}
    second = asyncio.create_task(newer.ask(app, path, json.dumps(body).encode(), headers))
    async with asyncio.timeout(10):
        await first
    assert older.ended
    assert b"Another connection goes on with this stream" in older.received
    engine.go.set()
    await second
    assert resumed(newer) == b"memory"
    assert newer.ended
    assert older.received.count(b"\nid:") + newer.received.count(b"\nid:") >= len(TEXT) / 16
    assert len(engine.requests) == 1


async def test_the_older_has_an_error_also_where_it_had_no_head(
    app: Starlette, reader: EventReader
) -> None:
    await continued(app, CHAT_PATH, CHAT, reader, most=1000)
    other = replica(script)
    again: SeededEngine = other.state.engine
    again.go.clear()
    older = asyncio.create_task(ask(other, CHAT_PATH, CHAT, reader.last_id.decode()))
    await until(lambda: bool(again.tasks))
    newer = asyncio.create_task(ask(other, CHAT_PATH, CHAT, reader.last_id.decode()))
    refused = await asyncio.wait_for(older, 10)
    assert refused.status == 409
    assert b"Another connection goes on with this stream" in refused.received
    again.go.set()
    assert resumed(await newer) == b"memory"


async def test_of_many_that_want_what_is_not_kept_one_has_the_stream(
    app: Starlette, reader: EventReader
) -> None:
    await continued(app, PATH, BODY, reader, most=500)
    early = reader.last_id.decode()
    await continued(app, PATH, BODY, reader, most=500)
    other = replica(script)
    again: SeededEngine = other.state.engine
    again.go.clear()
    asking = [asyncio.create_task(ask(other, PATH, BODY, reader.last_id.decode()))]
    await until(lambda: bool(again.tasks))
    asking += [asyncio.create_task(ask(other, PATH, BODY, early)) for _ in range(3)]
    done, left = await asyncio.wait(asking, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    while len(left) > 1:
        done, left = await asyncio.wait(left, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert done
    await until(lambda: len(again.tasks) == 1)
    again.go.set()
    replaced = [b"Another connection" in (await one).received for one in asking]
    assert sorted(replaced) == [False, True, True, True]
    await other.state.streams.close()
    assert other.state.streams.n_bytes == 0


async def test_another_text_is_an_error_and_no_text(app: Starlette, reader: EventReader) -> None:
    await continued(app, PATH, BODY, reader, most=2000)
    n_before = len(reader.payloads)
    other = replica(other_script)
    found = await continued(other, PATH, BODY, reader)
    assert found.status == 200
    assert found.ended
    (error,) = reader.payloads[n_before:]
    assert json.loads(error)["error_type"] == "not_resumable"
    assert "begins differently" in json.loads(error)["error"]
    assert b"id:" not in found.received
    assert (await metrics(other))['tgi_async_resumed_streams{how="mismatched"}'] == 1


async def test_below_v1_another_text_has_its_status(app: Starlette, reader: EventReader) -> None:
    await continued(app, CHAT_PATH, CHAT, reader, most=900)
    assert b"[DONE]" not in reader.payloads
    found = await continued(replica(other_script), CHAT_PATH, CHAT, reader_at(reader))
    assert found.status == 409
    assert json.loads(found.received)["error"]["code"] == "not_resumable"


def reader_at(reader: EventReader) -> EventReader:
    """Another reader that is where this one is."""
    found = EventReader()
    found.last_id = reader.last_id
    return found


async def ask(app: ASGIApp, path: str, body: Any, *ids: str) -> Connection:
    connection = Connection()
    headers = [("last-event-id", id) for id in ids]
    await connection.ask(app, path, json.dumps(body).encode(), headers)
    return connection


async def test_what_is_no_id_is_refused(app: Starlette, engine: SeededEngine) -> None:
    refused = await ask(app, PATH, BODY, "37")
    assert refused.status == 422
    assert json.loads(refused.received)["error_type"] == "validation"
    assert (await ask(app, CHAT_PATH, CHAT, "37")).status == 400
    assert (await ask(app, PATH, BODY, "37", "38")).status == 409
    assert engine.requests == []
    assert (await ask(app, PATH, BODY, "")).status == 200


async def test_an_id_of_another_request_is_refused_before_any_work(
    app: Starlette, engine: SeededEngine, reader: EventReader
) -> None:
    await continued(app, PATH, BODY, reader, most=1000)
    n_before = len(engine.requests)
    id = reader.last_id.decode()
    for path, body in [(PATH, {**BODY, "inputs": "Ho"}), ("/", {**BODY, "stream": True})]:
        refused = await ask(app, path, body, id)
        assert refused.status == 409
        assert "another request" in json.loads(refused.received)["error"]
    assert len(engine.requests) == n_before


async def test_a_whole_reply_ignores_the_id_and_says_so(app: Starlette) -> None:
    found = await ask(app, "/generate", BODY, "37")
    assert found.status == 200
    assert b"x-tgi-ignored" not in found.headers  # the route has no streams
    found = await ask(app, "/", {**BODY, "stream": False}, "37")
    assert found.status == 200
    assert found.headers[b"x-tgi-ignored"] == b"Last-Event-ID"


async def test_without_a_window_nothing_changes() -> None:
    app = replica(script, window=0)
    found = await ask(app, PATH, BODY, "37")
    assert found.status == 200
    assert b"id:" not in found.received
    assert b"retry:" not in found.received
    assert app.state.streams is None


async def test_ids_that_were_made_up_reach_nothing(
    app: Starlette, engine: SeededEngine, reader: EventReader
) -> None:
    await held(app, reader)
    engine.go.set()
    prefix, _, rest = reader.last_id.decode().partition(".")
    made_up = f"{'A' * 10}{prefix[10:]}.{rest}"
    assert EventId.parse(made_up.encode()).request == EventId.parse(reader.last_id).request
    greedy = await ask(app, PATH, BODY, made_up)
    assert resumed(greedy) == b"recomputed"
    beyond = await ask(app, PATH, BODY, f"{prefix}.9999.0.abcdefgh")
    assert b"not_resumable" in beyond.received
    assert b'"token"' not in beyond.received


async def test_a_sign_of_life_is_no_event_to_clients_that_remember_ids(
    app: Starlette, engine: SeededEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection()
    engine.go.clear()
    monkeypatch.setattr(exchange_module, "KEEP_ALIVE_SECONDS", 0.01)
    asking = asyncio.create_task(connection.ask(app, CHAT_PATH, json.dumps(CHAT).encode(), {}))
    await until(lambda: connection.received.endswith(b":\n"))
    monkeypatch.setattr(exchange_module, "KEEP_ALIVE_SECONDS", 100)
    engine.go.set()
    await asking
    assert b":\n\n" not in connection.received
    assert connection.received.endswith(b"\n\n")


async def test_what_does_not_fit_ends_a_stream_without_a_client(
    app: Starlette,
    engine: SeededEngine,
    reader: EventReader,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await held(app, reader)
    monkeypatch.setattr(resume_module, "MOST_BYTES_OF_ONE", 1000)
    engine.go.set()
    await until(lambda: not engine.tasks)
    assert "has written too much" in caplog.text
    assert app.state.streams.n_bytes == 0
    assert resumed(await continued(app, PATH, BODY, reader)) == b"recomputed"
    assert text(reader) == TEXT


async def test_old_events_are_dropped_while_the_client_reads(
    app: Starlette, reader: EventReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_module, "MOST_BYTES_OF_ONE", 1000)
    await continued(app, PATH, BODY, reader, most=1000)
    early = reader_at(reader)
    early.payloads = list(reader.payloads)
    await continued(app, PATH, BODY, reader)
    assert app.state.streams.n_bytes < 1000 + 4096 + 500
    assert text(reader) == TEXT
    assert resumed(await continued(app, PATH, BODY, early)) == b"recomputed"
    assert text(early) == TEXT


async def test_a_stream_that_failed_is_computed_again(
    app: Starlette, engine: SeededEngine, reader: EventReader
) -> None:
    await held(app, reader)
    engine.fail(GenerationError("broken"))
    engine.go.set()
    await until(lambda: app.state.streams.n_bytes == 0)
    assert resumed(await continued(app, PATH, BODY, reader)) == b"recomputed"
    assert text(reader) == TEXT


async def test_streams_end_with_the_server(reader: EventReader) -> None:
    app = replica(script, chats=False)  # its end is the template's too
    engine: SeededEngine = app.state.engine
    async with app.router.lifespan_context(app):
        await held(app, reader)
        assert engine.tasks
    assert not engine.tasks
    assert app.state.streams.n_bytes == 0

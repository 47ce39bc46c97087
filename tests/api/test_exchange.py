from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from tgi_async.api import exchange as exchange_module
from tgi_async.api.encoding import encode_events
from tgi_async.api.exchange import Exchange
from tgi_async.errors import Overloaded, ServerError, Unhealthy


class Sent:
    """What an exchange sent, and the exchange."""

    def __init__(self, scope: dict[str, Any] | None = None) -> None:
        self.messages: list[Message] = []
        self.exchange = Exchange(scope or {"client": ("10.0.0.7", 5)}, self._send)

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body"]


@pytest.fixture
def sent() -> Sent:
    return Sent()


def event(payload: object) -> bytes:
    return encode_events([payload])


def describe(error: ServerError) -> list[dict[str, str]]:
    return [{"reported": str(error)}]


async def test_the_peer_is_known_without_its_port(sent: Sent) -> None:
    assert sent.exchange.context.peer == "10.0.0.7"


async def test_a_unix_socket_has_no_peer() -> None:
    assert Sent({"client": None}).exchange.context.peer == ""


async def test_an_error_before_anything_is_a_reply(sent: Sent) -> None:
    await sent.exchange.fail(Overloaded())
    assert sent.messages[0]["status"] == 429
    assert sent.bodies == [b'{"error":"Model is overloaded","error_type":"overloaded"}']


async def test_only_a_503_says_when_to_come_back(sent: Sent) -> None:
    await sent.exchange.fail(Unhealthy())
    assert b"retry-after" in dict(sent.messages[0]["headers"])


async def test_an_error_within_a_stream_ends_it(sent: Sent) -> None:
    await sent.exchange.open_stream([], describe)
    await sent.exchange.write(["first"])
    await sent.exchange.fail(Overloaded())
    assert sent.bodies == [event("first"), b'data: {"reported":"Model is overloaded"}\n\n']
    assert not sent.messages[-1].get("more_body", False)


async def test_an_error_after_the_end_changes_nothing(sent: Sent) -> None:
    await sent.exchange.reply(b"{}")
    await sent.exchange.fail(Overloaded())
    assert sent.bodies == [b"{}"]


async def test_signs_of_life_are_sent_in_an_open_stream_only(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "KEEP_ALIVE_SECONDS", 0.0)
    await sent.exchange.keep_alive()
    assert sent.messages == []
    await sent.exchange.open_stream([], describe)
    await sent.exchange.keep_alive()
    await sent.exchange.close()
    await sent.exchange.keep_alive()
    assert sent.bodies == [b":\n\n", b""]


class Writer:
    """Takes pieces for a client that may not keep up."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ready = True

    def keeps_up(self) -> bool:
        return self.ready

    def write(self, piece: bytes) -> None:
        self.pieces.append(piece)


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def direct(writer: Writer) -> Sent:
    return Sent({"client": None, "extensions": {exchange_module.DIRECT: {"writer": writer}}})


async def test_a_server_without_a_short_way_is_never_written_to_at_once(sent: Sent) -> None:
    await sent.exchange.open_stream([], describe)
    await sent.exchange.write(["first"])
    assert not sent.exchange.keeps_up()


async def test_the_first_event_goes_the_usual_way_for_all_to_see(
    direct: Sent, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "KEEP_ALIVE_SECONDS", 0.0)
    await direct.exchange.open_stream([], describe)
    await direct.exchange.keep_alive()
    assert not direct.exchange.keeps_up()
    await direct.exchange.write(["first"])
    assert direct.exchange.keeps_up()
    direct.exchange.write_now(["second"])
    await direct.exchange.close(["last"])
    assert direct.bodies == [b":\n\n", event("first"), event("last")]
    assert writer.pieces == [event("second")]


async def test_nothing_overtakes_what_waits_to_be_sent(direct: Sent, writer: Writer) -> None:
    await direct.exchange.open_stream([], describe)
    await direct.exchange.write(["first"])
    go = asyncio.Event()

    async def slow(message: Message) -> None:
        await go.wait()

    direct.exchange._send = slow
    waiting = asyncio.create_task(direct.exchange.write(["second"]))
    await asyncio.sleep(0)
    assert not direct.exchange.keeps_up()
    go.set()
    await waiting
    assert direct.exchange.keeps_up()


async def test_a_client_that_is_behind_or_has_all_is_not_written_to_at_once(
    direct: Sent, writer: Writer
) -> None:
    await direct.exchange.open_stream([], describe)
    await direct.exchange.write(["first"])
    writer.ready = False
    assert not direct.exchange.keeps_up()
    writer.ready = True
    await direct.exchange.close()
    assert not direct.exchange.keeps_up()


async def test_no_event_is_no_piece(direct: Sent, writer: Writer) -> None:
    await direct.exchange.open_stream([], describe)
    await direct.exchange.write(["first"])
    direct.exchange.write_now([])
    assert writer.pieces == []


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the exchange, which stands still; a sign of life is due after ten seconds."""
    clock = Clock()
    monkeypatch.setattr(exchange_module, "time", clock)
    monkeypatch.setattr(exchange_module, "KEEP_ALIVE_SECONDS", 10.0)
    return clock


async def test_a_sign_of_life_is_due_after_so_long_a_silence(clock: Clock, sent: Sent) -> None:
    await sent.exchange.open_stream([], describe)
    clock.now += 9
    assert sent.exchange.seconds_to_keep_alive() == 1
    await sent.exchange.keep_alive()
    assert sent.bodies == []
    clock.now += 1
    await sent.exchange.keep_alive()
    assert sent.bodies == [b":\n\n"]
    assert sent.exchange.seconds_to_keep_alive() == 10


@pytest.mark.parametrize("at_once", [False, True])
async def test_an_event_is_a_sign_of_life(
    clock: Clock, direct: Sent, writer: Writer, at_once: bool
) -> None:
    await direct.exchange.open_stream([], describe)
    await direct.exchange.write(["first"])
    clock.now += 60
    assert direct.exchange.seconds_to_keep_alive() < 0
    if at_once:
        direct.exchange.write_now(["second"])
    else:
        await direct.exchange.write(["second"])
    assert direct.exchange.seconds_to_keep_alive() == 10


async def test_no_sign_of_life_is_due_before_a_stream_or_while_something_is_sent(
    clock: Clock, sent: Sent
) -> None:
    """Who waits for the next one would otherwise ask again at once, for as long as that takes."""
    clock.now += 60
    assert sent.exchange.seconds_to_keep_alive() > 0
    await sent.exchange.open_stream([], describe)
    due: list[float] = []

    async def slow(message: Message) -> None:
        clock.now += 60
        due.append(sent.exchange.seconds_to_keep_alive())

    sent.exchange._send = slow
    await sent.exchange.write(["first"])
    assert due == [10]

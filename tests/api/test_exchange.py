from __future__ import annotations

import pytest

from tgi_async.api import exchange as exchange_module
from tgi_async.api.exchange import Exchange, event
from tgi_async.errors import Overloaded, Unhealthy


class Sent:
    """What an exchange sent, and the exchange."""

    def __init__(self, scope=None) -> None:
        self.messages = []
        self.exchange = Exchange(scope or {"client": ("10.0.0.7", 5)}, self._send)

    async def _send(self, message) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body"]


@pytest.fixture
def sent() -> Sent:
    return Sent()


def describe(error):
    return event({"told": str(error)})


async def test_an_event_is_one_line_of_json():
    assert event({"a": "\n한"}) == 'data: {"a":"\\n한"}\n\n'.encode()


async def test_the_peer_is_known_without_its_port(sent):
    assert sent.exchange.peer == "10.0.0.7"


async def test_a_unix_socket_has_no_peer():
    assert Sent({"client": None}).exchange.peer == ""


async def test_an_error_before_anything_is_a_reply(sent):
    await sent.exchange.fail(Overloaded())
    assert sent.messages[0]["status"] == 429
    assert sent.bodies == [b'{"error":"Model is overloaded","error_type":"overloaded"}']


async def test_only_a_503_says_when_to_come_back(sent):
    await sent.exchange.fail(Unhealthy())
    assert b"retry-after" in dict(sent.messages[0]["headers"])


async def test_an_error_within_a_stream_ends_it(sent):
    await sent.exchange.open_stream([], describe)
    await sent.exchange.write(b"first")
    await sent.exchange.fail(Overloaded())
    assert sent.bodies == [b"first", b'data: {"told":"Model is overloaded"}\n\n']
    assert not sent.messages[-1].get("more_body", False)


async def test_an_error_after_the_end_changes_nothing(sent):
    await sent.exchange.reply(b"{}")
    await sent.exchange.fail(Overloaded())
    assert sent.bodies == [b"{}"]


async def test_signs_of_life_are_sent_in_an_open_stream_only(sent, monkeypatch):
    monkeypatch.setattr(exchange_module, "KEEP_ALIVE_SECONDS", 0.0)
    await sent.exchange.keep_alive()
    assert sent.messages == []
    await sent.exchange.open_stream([], describe)
    await sent.exchange.keep_alive()
    await sent.exchange.close()
    await sent.exchange.keep_alive()
    assert sent.bodies == [b":\n\n", b""]


async def test_a_stream_that_is_not_silent_needs_no_sign_of_life(sent):
    await sent.exchange.open_stream([], describe)
    await sent.exchange.keep_alive()
    assert sent.bodies == []

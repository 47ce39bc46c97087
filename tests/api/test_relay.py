"""From a generation to the client, the short way and the long one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from tests.doubles.fake_engine import words
from tgi_async.api.encoding import Events
from tgi_async.api.engine_client import Generation
from tgi_async.api.exchange import Exchange
from tgi_async.api.relay import relay
from tgi_async.errors import GenerationError
from tgi_async.generation import Emitted

A, B, C, D = words("a", "b", "c", "d")


class Scripted:
    """Offers each of what it emits to its sink, and yields what that does not take."""

    def __init__(self, *emitted: Emitted, error: Exception | None = None) -> None:
        self._emitted = list(emitted)
        self._error = error
        self.sink: Callable[[Emitted], bool] | None = None

    def __aiter__(self) -> Scripted:
        return self

    async def __anext__(self) -> Emitted:
        while self._emitted:
            emitted = self._emitted.pop(0)
            assert self.sink is not None
            if emitted.finish_reason is not None or not self.sink(emitted):
                return emitted
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


class Pieces:
    """An exchange that notes how each piece came; `keeping_up` says how often it keeps up."""

    def __init__(self, *keeping_up: bool) -> None:
        self._keeping_up = list(keeping_up)
        self.pieces: list[tuple[str, Events]] = []

    def keeps_up(self) -> bool:
        return self._keeping_up.pop(0)

    async def write(self, events: Events) -> None:
        self.pieces.append(("waited", events))

    def write_now(self, events: Events) -> None:
        self.pieces.append(("at once", events))


def texts(emitted: Emitted) -> Events:
    return [token.text for token in emitted.tokens]


async def relayed(generation: Scripted, exchange: Pieces) -> Events:
    return await relay(cast(Generation, generation), cast(Exchange, exchange), texts)


async def test_a_client_that_keeps_up_is_written_to_at_once() -> None:
    exchange = Pieces(False, True)
    generation = Scripted(Emitted([A], None), Emitted([B], None), Emitted([C, D], "length"))
    assert await relayed(generation, exchange) == ["c", "d"]
    assert exchange.pieces == [("waited", ["a"]), ("at once", ["b"])]


async def test_who_does_not_is_waited_for() -> None:
    exchange = Pieces(True, False, True)
    generation = Scripted(
        Emitted([A], None), Emitted([B, C], None), Emitted([D], None), Emitted([A], "length")
    )
    assert await relayed(generation, exchange) == ["a"]
    assert exchange.pieces == [("at once", ["a"]), ("waited", ["b", "c"]), ("at once", ["d"])]


async def test_what_fails_is_reported_after_what_was_emitted() -> None:
    exchange = Pieces(True)
    with pytest.raises(GenerationError, match="broken"):
        await relayed(Scripted(Emitted([A], None), error=GenerationError("broken")), exchange)
    assert exchange.pieces == [("at once", ["a"])]

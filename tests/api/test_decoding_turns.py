"""Large bodies are decoded in turn, with time for others between."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.api.test_endpoint import hang_up, send_raw
from tests.api.waiting import until
from tests.doubles.fake_engine import FakeEngine
from tgi_async.api import endpoint
from tgi_async.api.decoding_turns import DecodingTurns, Turn

LARGE: dict[str, Any] = {"inputs": "Hi", "pad": "x" * 1000}


async def order(turns: DecodingTurns, first: Turn, waiting: dict[str, Turn]) -> list[str]:
    """The names of those that wait, in the order of their turns."""
    found: list[str] = []
    turns.leave(first)
    while waiting:
        await until(lambda: any(turn.done() for turn in waiting.values()))
        (name,) = (name for name, turn in waiting.items() if turn.done())
        found.append(name)
        turns.leave(waiting.pop(name))
    return found


async def test_clients_take_turns() -> None:
    turns = DecodingTurns()
    first = turns.wait("a")
    assert first.done()
    waiting = {name: turns.wait(name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")}
    assert await order(turns, first, waiting) == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_who_leaves_has_no_turn() -> None:
    turns = DecodingTurns()
    first = turns.wait("a")
    gone, after = turns.wait("b"), turns.wait("b")
    turns.leave(gone)
    assert await order(turns, first, {"after": after}) == ["after"]
    last = turns.wait("a")
    await last
    # One that leaves just when its turn has come does not keep it.
    turns.leave(last)
    await turns.wait("b")


async def test_others_have_as_long_as_the_last_one_took() -> None:
    turns = DecodingTurns()
    first, second = turns.wait("a"), turns.wait("a")
    loop = asyncio.get_running_loop()
    began = loop.time()
    turns.leave(first, 0.05)
    await second
    assert loop.time() - began >= 0.049


async def test_a_large_body_waits_for_its_turn(
    live: httpx.AsyncClient,
    address: tuple[str, int],
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting: list[Turn] = []

    def wait(turns: DecodingTurns, client: str) -> Turn:
        assert client.startswith("127.0.0.1")
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    monkeypatch.setattr(DecodingTurns, "wait", wait)
    monkeypatch.setattr(endpoint, "LARGE_BODY", 1000)
    engine.go.set()
    _, writer = await send_raw(address, "/generate", LARGE)
    await until(lambda: len(waiting) == 1)
    # Whose client leaves meanwhile is not decoded, and a small one does not wait.
    await hang_up(writer)
    await until(waiting[0].cancelled)
    assert (await live.post("/generate", json={"inputs": "Hi"})).status_code == 200
    assert len(engine.requests) == 1
    asked = asyncio.create_task(live.post("/generate", json=LARGE))
    await until(lambda: len(waiting) == 2)
    waiting[1].set_result(None)
    assert (await asked).status_code == 200

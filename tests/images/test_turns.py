from __future__ import annotations

import asyncio

import pytest

from tgi_async.errors import Overloaded
from tgi_async.images.turns import Turns


class Visits:
    """Tasks that take turns and stay until they are let out."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.inside: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._doors: dict[str, asyncio.Event] = {}

    async def come(self, *names: str) -> None:
        """Each name's first letter is its client."""
        for name in names:
            self._doors[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._visit(name))
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _visit(self, name: str) -> None:
        async with self._turns.take(name[0]):
            self.inside.append(name)
            await self._doors[name].wait()

    async def leave(self, name: str) -> None:
        self._doors[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_clients_come_in_turn_and_none_has_all() -> None:
    visits = Visits(Turns(3, 2, 100))
    await visits.come("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    assert visits.inside == ["a1", "a2", "b1"]
    await visits.leave("a1")
    assert visits.inside[3:] == ["a3"]
    await visits.leave("a2")
    assert visits.inside[4:] == ["b2"]
    await visits.leave("b1")
    assert visits.inside[5:] == ["c1"]
    await visits.leave("a3")
    assert visits.inside[6:] == ["a4"]


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    visits = Visits(Turns(1, 1, 100))
    await visits.come("a1", "a2", "b1", "b2")
    for name in ("a2", "b1"):
        visits.tasks[name].cancel()
    await asyncio.sleep(0)
    await visits.leave("a1")
    assert visits.inside == ["a1", "b2"]
    await visits.leave("b2")
    await visits.come("c1")
    assert visits.inside[2:] == ["c1"]
    assert visits._turns._waiting == {}


async def test_who_gives_up_as_its_turn_comes_passes_it_on() -> None:
    visits = Visits(Turns(1, 1, 100))
    await visits.come("a1", "b1", "c1")
    visits._doors["a1"].set()
    await asyncio.sleep(0)  # a1 leaves, and b1 is let in but has not noticed
    visits.tasks["b1"].cancel()
    await asyncio.sleep(0.01)
    assert visits.inside == ["a1", "c1"]


async def test_more_than_may_wait_are_refused() -> None:
    visits = Visits(Turns(1, 1, 2))
    await visits.come("a1", "b1", "c1")
    with pytest.raises(Overloaded, match="Too many images are waiting to be fetched"):
        async with visits._turns.take("d"):
            pass
    await visits.leave("a1")
    await visits.come("d1")
    assert visits.inside == ["a1", "b1"]
    assert not visits.tasks["d1"].done()
    for name in ("b1", "c1", "d1"):
        await visits.leave(name)


async def test_all_may_give_up_at_once() -> None:
    visits = Visits(Turns(1, 1, 100))
    await visits.come("a1", "b1", "b2", "c1")
    for task in visits.tasks.values():
        task.cancel()
    ended = await asyncio.gather(*visits.tasks.values(), return_exceptions=True)
    assert {type(one) for one in ended} == {asyncio.CancelledError}
    await visits.come("d1")
    assert visits.inside == ["a1", "d1"]
    await visits.leave("d1")

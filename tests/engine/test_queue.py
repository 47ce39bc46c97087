"""More requests than rows: what waits, what gives way, and what happens to it meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.doubles.fake_engine_run import Running, collect, running
from tests.doubles.fake_worker import Behaviour
from tgi_async.errors import GenerationError, Overloaded, Unhealthy
from tgi_async.generation_stream import GenerationStream
from tgi_async.scheduler.reservations import Capacity

POISON = 3
ONE_AND_FOUR = Capacity(max_concurrent=1, max_queued=4)


class Client:
    """Requests of one client, and which of them were evicted."""

    def __init__(self, run: Running, name: str) -> None:
        self._run = run
        self._name = name
        self.evicted: list[str] = []

    def ask(self, text: str, n: int = 4) -> GenerationStream:
        prompt = self._run.tokenizer.encode(text)
        reservation = self._run.engine.reserve(
            self._name, 1, len(text), lambda: self.evicted.append(text)
        )
        return self._run.submit(prompt, n, client=self._name, reservation=reservation)


async def test_what_finds_no_row_waits_and_is_served(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path, max_rows=1, capacity=ONE_AND_FOUR) as run:
        ann = Client(run, "ann")
        texts = [f"text {number}" for number in range(5)]
        found = await asyncio.gather(*(collect(ann.ask(text)) for text in texts))
        assert [one.ids for one in found] == [run.expected(text, 4) for text in texts]
        assert run.engine.n_waiting == 0


async def test_a_full_queue_makes_room_for_another_client(tmp_path: Path) -> None:
    behaviour = Behaviour(step_seconds=0.01)
    async with running(behaviour, tmp_path, max_rows=1, capacity=ONE_AND_FOUR) as run:
        eve, ann = Client(run, "eve"), Client(run, "ann")
        first = eve.ask("runs", 100)
        await anext(first)
        waiting = [eve.ask(f"waits {number}", 100) for number in range(4)]
        with pytest.raises(Overloaded):
            eve.ask("one too many")
        assert eve.evicted == []
        asked = ann.ask("hello")
        assert eve.evicted == ["waits 3"]
        with pytest.raises(Overloaded, match="its place went to a client with fewer"):
            await anext(waiting[3])
        assert run.engine.n_waiting == 4
        first.cancel()
        # Hers is next: she has had nothing yet.
        assert (await collect(asked)).ids == run.expected("hello", 4)


async def test_what_waits_stays_when_the_worker_dies(tmp_path: Path) -> None:
    behaviour = Behaviour(die_at={1: 4}, step_seconds=0.01)
    async with running(behaviour, tmp_path, max_rows=1, capacity=ONE_AND_FOUR) as run:
        ann = Client(run, "ann")
        found = await asyncio.gather(*(collect(ann.ask(text, 6)) for text in ("a", "bb", "ccc")))
        assert [one.ids for one in found] == [run.expected(text, 6) for text in ("a", "bb", "ccc")]
        assert run.engine.worker_restarts == 1


async def test_deaths_without_progress_fail_what_ran_and_nothing_that_waits(
    tmp_path: Path,
) -> None:
    async with running(Behaviour(die_on=POISON), tmp_path, max_rows=1) as run:
        killer, innocent = run.submit([1, POISON], 4), run.submit("innocent", 4)
        with pytest.raises(GenerationError, match="again and again with this request"):
            await collect(killer)
        assert (await collect(innocent)).ids == run.expected("innocent", 4)
        assert run.engine.worker_restarts == 3


async def test_an_engine_that_stops_has_no_rows(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        await run.engine.stop(1)
        with pytest.raises(Unhealthy, match="shutting down"):
            Client(run, "ann").ask("late")


async def test_rows_that_were_given_back_are_there_for_others(tmp_path: Path) -> None:
    capacity = Capacity(max_concurrent=2)
    async with running(Behaviour(), tmp_path, max_rows=2, capacity=capacity) as run:
        held = run.engine.reserve("ann", 2, 0, lambda: None)
        with pytest.raises(Overloaded):
            run.engine.reserve("bob", 1, 0, lambda: None)
        for _ in range(2):
            run.engine.release(held)
        run.engine.reserve("bob", 2, 0, lambda: None)

"""A request that keeps killing its worker fails alone, whenever it does so, and soon."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.doubles.fake_engine_run import collect, running
from tests.doubles.fake_worker import Behaviour
from tgi_async import deadline
from tgi_async.errors import GenerationError

POISON = 3
N_TOKENS = 24
MOST_DEATHS = 10
"""Until it is found among eight others."""


@pytest.mark.parametrize(
    ("length", "hangs"),
    [
        pytest.param(0, False, id="first token"),
        pytest.param(3 + 10, False, id="tenth token"),
        pytest.param(40, False, id="long texts only", marks=pytest.mark.full),
        pytest.param(0, True, id="hang"),
    ],
)
async def test_it_fails_alone_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, hangs: bool
) -> None:
    monkeypatch.setattr(deadline, "IDLE_SECONDS", 0.5)
    # A text of this length with the poison in it is deadly; shorter ones are served.
    poisoned = [1, 2, POISON] if length < 40 else [1, 2, POISON, *range(10, 50)]
    behaviour = Behaviour(die_on=POISON, die_on_length=length, hang_on=hangs, n_blocks=400)
    async with running(behaviour, tmp_path) as run:
        prompts = [f"innocent {i}" for i in range(8)]
        others = [run.submit(prompt, N_TOKENS) for prompt in prompts]
        poison = run.submit(poisoned, N_TOKENS)
        short = run.submit([1, 2, POISON], 4) if length == 40 else None
        found = asyncio.gather(*map(collect, others))
        with pytest.raises(GenerationError) as raised:
            await collect(poison)
        assert raised.value.status == 424
        assert [one.ids for one in await found] == [run.expected(one, N_TOKENS) for one in prompts]
        if short is not None:
            assert len((await collect(short)).ids) == 4
        assert run.engine.worker_restarts <= MOST_DEATHS
        assert run.engine.used_blocks == 0
        assert (await run.generate("afterwards")).ids == run.expected("afterwards")
        assert run.engine.worker_restarts <= MOST_DEATHS


async def test_two_of_them_fail_and_nobody_else(tmp_path: Path) -> None:
    async with running(Behaviour(die_on=POISON, n_blocks=400), tmp_path) as run:
        prompts = [f"innocent {i}" for i in range(6)]
        others = [run.submit(prompt, N_TOKENS) for prompt in prompts]
        poisoned = [run.submit([i, POISON], N_TOKENS) for i in (1, 2)]
        found = asyncio.gather(*map(collect, others))
        for one in poisoned:
            with pytest.raises(GenerationError):
                await collect(one)
        assert [one.ids for one in await found] == [run.expected(one, N_TOKENS) for one in prompts]
        assert run.engine.worker_restarts <= 2 * MOST_DEATHS

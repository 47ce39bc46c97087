"""The engine, when something in it raises: one request fails, or the workers start again, or it
all ends. Nobody waits for nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.fake_engine_run import Running, collect, running, until
from tests.doubles.fake_worker import Behaviour
from tests.engine.test_faults import POISON, serve_twelve
from tgi_async import deadline
from tgi_async.engine import MAX_DEATHS
from tgi_async.errors import GenerationError, Unhealthy
from tgi_async.generation_stream import GenerationStream
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.reservations import Capacity


class PlantedError(Exception):
    """Nothing of ours raises or catches it."""


def raises(*_: object) -> Any:
    raise PlantedError


def once(call: Callable[..., Any], nth: int = 1, *, after: bool = False) -> Callable[..., Any]:
    """`call`, but the `nth` time it raises, before it has done anything or `after` that."""
    n_calls = 0

    def planted(*given: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == nth and not after:
            raise PlantedError
        result = call(*given, **named)
        if n_calls == nth:
            raise PlantedError
        return result

    return planted


def poisoned(run: Running, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this method of the core raise as soon as it comes upon a certain token of a prompt."""
    core = run.engine.core
    real = getattr(core, name)

    def planted(given: Any, *more: Any) -> Any:
        request = given if isinstance(given, Request) else given.request
        if POISON in request.tokens[: request.n_prompt]:
            raise PlantedError
        return real(given, *more)

    monkeypatch.setattr(core, name, planted)


async def fails(stream: GenerationStream, match: str) -> None:
    with pytest.raises(GenerationError, match=match):
        await collect(stream)


async def test_a_plan_that_always_raises_fails_all_after_a_few_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(), tmp_path) as run:
        with monkeypatch.context() as planted:
            planted.setattr(run.engine.core, "plan", raises)
            streams = [run.submit(f"stream {i}") for i in range(12)]
            found = await asyncio.gather(*map(collect, streams), return_exceptions=True)
            assert not run.engine.ready
            assert run.engine.worker_restarts == MAX_DEATHS
        assert {type(one) for one in found} == {Unhealthy}  # none of them has run
        assert "the engine failed, 5 times without progress" in str(found[0])
        await until(lambda: run.engine.ready)
        await serve_twelve(run)
        assert run.engine.used_blocks == 0


async def test_a_plan_that_always_raises_without_any_request_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(), tmp_path) as run:
        monkeypatch.setattr(run.engine.core, "plan", raises)
        leaving = run.submit("x")
        await until(lambda: run.engine.worker_restarts == 1)
        leaving.cancel()
        await until(run.engine.failed.done)
        assert isinstance(run.engine.failed.exception(), PlantedError)
        assert run.engine.worker_restarts <= 2 * MAX_DEATHS
        with pytest.raises(Unhealthy, match="gone for good"):
            run.submit("late")


async def test_while_the_engine_recovers_it_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(load_seconds=0.2), tmp_path) as run:
        monkeypatch.setattr(run.engine.core, "plan", once(run.engine.core.plan))
        stream = run.submit("x")
        await until(lambda: not run.engine.ready)
        assert (await collect(stream)).ids == run.expected("x")
        assert run.engine.ready


@pytest.mark.parametrize("name", ["_schedule", "_fail", "_acknowledge"])
async def test_a_request_that_the_core_cannot_bear_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    on = POISON if name == "_fail" else None
    behaviour = Behaviour(n_blocks=400, row_error_on=on, step_seconds=0.01)
    async with running(behaviour, tmp_path) as run:
        poisoned(run, name, monkeypatch)
        serving = asyncio.create_task(serve_twelve(run))
        await until(lambda: run.engine.n_running == 12)
        await fails(run.submit([1, POISON]), "the engine failed, again and again with this request")
        await serving
        # While it is admitted, it is known at once whose fault it is.
        assert run.engine.worker_restarts == (2 if name == "_schedule" else 3)
        assert (await run.generate("after")).ids == run.expected("after")
        assert run.engine.used_blocks == 0


@pytest.mark.parametrize("n_rows", [16, 1])
async def test_a_request_that_cannot_be_admitted_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int
) -> None:
    async with running(Behaviour(n_blocks=400), tmp_path, max_rows=n_rows) as run:
        real = Request.block_keys

        def block_keys(request: Request, block_size: int) -> Any:
            if POISON in request.tokens[: request.n_prompt]:
                raise PlantedError
            return real(request, block_size)

        monkeypatch.setattr(Request, "block_keys", block_keys)
        streams = [run.submit(f"before {i}") for i in range(3)]
        poison = run.submit([1, POISON])
        streams += [run.submit(f"behind {i}") for i in range(3)]
        await fails(poison, "again and again with this request")
        texts = [f"before {i}" for i in range(3)] + [f"behind {i}" for i in range(3)]
        found = await asyncio.gather(*map(collect, streams))
        assert [one.ids for one in found] == [run.expected(text) for text in texts]
        assert run.engine.worker_restarts == 2


async def test_who_kills_the_worker_fails_alone_beside_others_that_get_on(tmp_path: Path) -> None:
    async with running(Behaviour(n_blocks=400, die_on=POISON, step_seconds=0.01), tmp_path) as run:
        serving = asyncio.create_task(serve_twelve(run, 60))
        await until(lambda: run.engine.n_running == 12)
        await fails(run.submit([1, POISON]), "SIGKILL, again and again with this request")
        await serving
        assert run.engine.worker_restarts == 3


async def test_who_kills_the_worker_some_tokens_later_fails_alone_too(tmp_path: Path) -> None:
    behaviour = Behaviour(n_blocks=400, die_on=POISON, die_after=3, step_seconds=0.002)
    async with running(behaviour, tmp_path) as run:
        poison = run.submit([1, POISON], 200)
        serving = asyncio.create_task(serve_twelve(run, 100))
        await fails(poison, "SIGKILL, again and again with this request")
        await serving
        # Three, one for each halving of thirteen, and one more alone.
        assert run.engine.worker_restarts <= 3 + 4 + 1
        assert not run.engine.core.waiting.held


@pytest.mark.parametrize(
    ("name", "n", "after"),
    [
        pytest.param(name, n, after, marks=[] if n == usual else pytest.mark.full)
        for n in (1, 4, 9)
        for name, after, usual in (
            ("plan", False, 4),
            ("plan", True, 1),
            ("complete", True, 4),
            ("_close_tables", False, 9),
            ("_acknowledge", True, 4),
            ("finish", True, 1),
        )
    ],
)
async def test_an_error_in_the_core_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: bool, n: int
) -> None:
    async with running(Behaviour(n_blocks=60), tmp_path) as run:
        core = run.engine.core
        monkeypatch.setattr(core, name, once(getattr(core, name), n, after=after))
        await serve_twelve(run)
        assert run.engine.worker_restarts == 1
        assert run.engine.used_blocks == run.engine.n_running == run.engine.n_waiting == 0
        await serve_twelve(run)


async def test_prompt_logprobs_that_the_core_kept_to_itself_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(max_batch_prefill_tokens=8), tmp_path) as run:
        prompt = list(range(10, 43))
        undisturbed = run.submit(prompt, 6, prompt_logprobs=True)
        await collect(undisturbed)
        core = run.engine.core
        monkeypatch.setattr(core, "complete", once(core.complete, 3, after=True))
        generation = run.submit(prompt, 6, prompt_logprobs=True)
        await collect(generation)
        assert generation.prompt_logprobs == undisturbed.prompt_logprobs
        assert run.engine.worker_restarts == 1


async def test_an_error_while_a_request_is_taken_in_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(n_blocks=400, step_seconds=0.01), tmp_path) as run:
        serving = asyncio.create_task(serve_twelve(run))
        await until(lambda: run.engine.n_running == 12)
        add = run.engine.core.waiting.add
        monkeypatch.setattr(run.engine.core.waiting, "add", once(add, after=True))
        with pytest.raises(GenerationError, match="the engine failed"):
            run.submit("x")
        await serving
        assert run.engine.worker_restarts == 1
        assert run.engine.n_waiting == 0


async def test_an_error_while_rows_are_reserved_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capacity = Capacity(max_concurrent=2)
    async with running(Behaviour(), tmp_path, capacity=capacity) as run:
        reserve = run.engine.core.reservations.reserve
        monkeypatch.setattr(run.engine.core.reservations, "reserve", once(reserve))
        with pytest.raises(GenerationError, match="the engine failed"):
            run.engine.reserve("ann", 1, 1, lambda: None)
        await until(lambda: run.engine.worker_restarts == 1 and run.engine.ready)
        run.engine.reserve("ann", 2, 1, lambda: None)


async def test_an_error_while_a_client_leaves_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(n_blocks=400), tmp_path) as run:
        serving = asyncio.create_task(serve_twelve(run))
        leaving = run.submit("leaving", 100)
        await anext(leaving)
        monkeypatch.setattr(run.engine.core, "_leave", once(run.engine.core._leave))
        leaving.cancel()
        await serving
        assert run.engine.worker_restarts == 1
        assert run.engine.n_running == run.engine.used_blocks == 0


async def test_a_text_that_cannot_be_made_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(n_blocks=400), tmp_path) as run:
        serving = asyncio.create_task(serve_twelve(run))
        generation = run.submit("unspeakable", 40)
        await anext(generation)
        monkeypatch.setattr(generation, "_text", None)
        await fails(generation, "cannot be decoded")
        await serving
        assert run.engine.worker_restarts == 0
        assert run.engine.used_blocks == 0


async def test_prompt_logprobs_that_cannot_be_named_fail_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(), tmp_path) as run:
        generation = run.submit("unspeakable", prompt_logprobs=True)
        monkeypatch.setattr(generation, "prompt_ranks", None)
        await fails(generation, "cannot be decoded")
        assert (await run.generate("x")).ids == run.expected("x")
        assert run.engine.worker_restarts == 0


@pytest.mark.parametrize("name", ["sent", "done"])
async def test_an_error_in_what_is_counted_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with running(Behaviour(n_blocks=400), tmp_path) as run:
        steps = run.engine._steps
        monkeypatch.setattr(steps, name, once(getattr(steps, name), 5))
        await serve_twelve(run)
        assert run.engine.worker_restarts == 1


async def test_a_recovery_that_raises_is_the_end_and_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(die_at={1: 3}), tmp_path) as run:
        monkeypatch.setattr(run.engine.core.blocks, "reset", raises)
        live = run.submit("live")
        await fails(live, "the engine failed")
        assert isinstance(run.engine.failed.exception(), PlantedError)
        assert not run.engine.ready
        with pytest.raises(Unhealthy, match="gone for good"):
            run.submit("late")


async def test_a_retired_engine_stays_retired_when_its_workers_start_again(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={1: 3}), tmp_path) as run:
        run.engine.retire()
        assert (await run.generate("last")).ids == run.expected("last")
        assert run.engine.worker_restarts == 1
        assert not run.engine.ready


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(deadline, "STOPPED_SECONDS", 0.3)
    monkeypatch.setattr("tgi_async.deadline.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("tgi_async.supervisor.LOOK_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_is_stopped_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    behaviour = Behaviour(n_blocks=400, step_seconds=0.01, load_seconds=0.1)
    async with running(behaviour, tmp_path) as run:
        serving = asyncio.create_task(serve_twelve(run))
        await until(lambda: run.engine.n_running == 12)
        os.kill(run.starts[0]["pid"], signal.SIGSTOP)
        await until(lambda: not run.engine.ready)
        await serving
        assert run.engine.ready
        assert run.engine.worker_restarts == 1
    (line,) = (line for line in caplog.messages if "no result" in line)
    assert re.fullmatch(
        "the model worker gave no result for 0 s, and is stopped. "
        r"In flight: step \d+ \(\d+ rows up to position \d+.*\). "
        "Starting the workers again, 12 requests will be replayed",
        line,
    )


@pytest.mark.usefixtures("impatient")
async def test_a_request_on_which_workers_get_stuck_fails_in_the_end(tmp_path: Path) -> None:
    async with running(Behaviour(deaf_at={0: 1}), tmp_path) as run:
        await fails(run.submit("x"), "gave no result .*, again and again with this request")
        assert run.engine.worker_restarts == 3


@pytest.mark.usefixtures("impatient")
async def test_an_idle_worker_owes_nothing(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        await run.generate("x")
        await asyncio.sleep(0.6)
        assert run.engine.ready
        assert run.engine.worker_restarts == 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["idle", "slow", "stopped"])
async def test_a_worker_that_gets_stuck_loading_again_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with running(Behaviour(die_at={1: 3}), tmp_path) as run:
        if how == "slow":
            monkeypatch.setattr(deadline, "BUSY_SECONDS", 0.3)
        if how == "idle":
            monkeypatch.setattr(deadline, "IDLE_LOADING_SECONDS", 0.3)
        run.behaviour.load_seconds = 3600
        os.environ["FAKE_WORKER"] = run.behaviour.environment()
        live = run.submit("live")
        await until(lambda: len(run.starts) == 2)
        if how == "stopped":
            os.kill(run.starts[1]["pid"], signal.SIGSTOP)
        run.behaviour.load_seconds = 0
        os.environ["FAKE_WORKER"] = run.behaviour.environment()
        await until(lambda: len(run.starts) == 3)
        # This one is to be waited for, however busy the machine is.
        monkeypatch.setattr(deadline, "BUSY_SECONDS", 30.0)
        monkeypatch.setattr(deadline, "IDLE_SECONDS", 30.0)
        monkeypatch.setattr(deadline, "IDLE_LOADING_SECONDS", 30.0)
        assert (await collect(live)).ids == run.expected("live")
        assert len(run.starts) == 3

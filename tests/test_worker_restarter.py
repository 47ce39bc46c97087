from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from tests.doubles.fake_engine_run import DEADLINE, ROOT, alive, until
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tests.test_supervisor import START, ignore
from tgi_async.backoff import Backoff
from tgi_async.errors import StartError
from tgi_async.supervisor import WorkerDied
from tgi_async.wire.messages import Step
from tgi_async.worker_restarter import WorkerRestarter

Make = Callable[..., WorkerRestarter]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes restarters of fake workers; at the end nothing of them is left."""
    made: list[WorkerRestarter] = []

    def restarter(behaviour: Behaviour | None = None, **backoff: float) -> WorkerRestarter:
        monkeypatch.setenv(VARIABLE, (behaviour or Behaviour()).environment())
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        made.append(WorkerRestarter(1, COMMAND, Backoff(**({"first": 0.01} | backoff))))
        return made[-1]

    yield restarter
    for workers in made:
        folder = workers.folder
        await workers.stop(DEADLINE)
        assert not folder.exists()


async def die(workers: WorkerRestarter) -> None:
    """Kill a worker that has nothing to do, and wait until that is known."""
    assert workers.group is not None
    (pid,) = workers.group.pids
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await workers.group.receive()
    await workers.kill()
    assert not alive(pid)


def waits(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "in a row" in line]


async def test_idle_workers_that_die_in_a_row_come_back_later_and_later(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = make(longest=0.03)
    await workers.launch(START, ignore)
    for _ in range(5):
        await die(workers)
        await workers.relaunch(START)
    said = "workers die in a row: waiting {} s before the next start"
    assert waits(caplog) == [said.format(seconds) for seconds in (0.01, 0.02, 0.03, 0.03)]


async def test_a_worker_that_lived_long_enough_comes_back_at_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = make(healthy=0.0)
    await workers.launch(START, ignore)
    for _ in range(3):
        await die(workers)
        await workers.relaunch(START)
    assert waits(caplog) == []


async def test_deaths_while_loading_are_deaths_in_a_row(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = make(Behaviour(die_loading=[2, 3]), healthy=0.0001)
    await workers.launch(START, ignore)
    await die(workers)
    await workers.relaunch(START)
    assert len(waits(caplog)) == 2
    assert [line for line in caplog.messages if "while loading" in line] == [
        f"worker 0 was killed by SIGKILL while loading (attempt {n} of 3)" for n in (1, 2)
    ]


async def test_three_deaths_while_loading_are_the_end(make: Make) -> None:
    workers = make(Behaviour(die_loading=[2, 3, 4]))
    await workers.launch(START, ignore)
    await die(workers)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await workers.relaunch(START)
    assert workers.group is None


async def test_a_refusal_of_what_was_served_is_tried_again(make: Make) -> None:
    workers = make(Behaviour(refuse={2: "there is no room", 3: "the disk is away"}))
    await workers.launch(START, ignore)
    await die(workers)
    await workers.relaunch(START)
    assert workers.group is not None


async def test_three_refusals_are_the_end(make: Make) -> None:
    workers = make(Behaviour(refuse={n: f"reason {n}" for n in (2, 3, 4)}))
    await workers.launch(START, ignore)
    await die(workers)
    with pytest.raises(StartError, match="reason 4"):
        await workers.relaunch(START)


async def test_workers_that_gave_results_come_back_at_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = make(first=1000.0, longest=1000.0)
    await workers.launch(START, ignore)
    for _ in range(3):
        assert workers.group is not None
        workers.group.send(Step(1, [], [], [], []))
        await workers.group.receive()
        await die(workers)
        await workers.relaunch(START)
    assert waits(caplog) == []


async def test_a_wait_can_be_cancelled(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    workers = make(first=1000.0, longest=1000.0)
    await workers.launch(START, ignore)
    await die(workers)
    await workers.relaunch(START)
    await die(workers)
    waiting = asyncio.create_task(workers.relaunch(START))
    await until(lambda: bool(waits(caplog)))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert workers.group is None

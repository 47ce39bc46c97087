from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from tests.doubles.fake_engine_run import DEADLINE, ROOT, alive, until
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tests.test_supervisor import FIRST, START, ignore
from tgi_async.backoff import Backoff
from tgi_async.errors import StartError
from tgi_async.supervisor import PlaceTaken, WorkerDied
from tgi_async.wire.messages import PLACE_TAKEN, Step
from tgi_async.worker_restarter import WorkerRestarter

Make = Callable[..., WorkerRestarter]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes restarters of fake workers; at the end nothing of them is left."""
    made: list[WorkerRestarter] = []

    def restarter(
        behaviour: Behaviour | None = None, *, standby: bool = False, **backoff: float
    ) -> WorkerRestarter:
        monkeypatch.setenv(VARIABLE, (behaviour or Behaviour()).environment())
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        waits = Backoff(**({"first": 0.01} | backoff))
        made.append(WorkerRestarter(1, COMMAND, waits, standby=standby))
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


async def test_one_that_finished_a_step_comes_back_at_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = make()
    await workers.launch(START, ignore)
    for _ in range(3):
        assert workers.group is not None
        workers.group.send(FIRST)
        await workers.group.receive()
        await die(workers)
        await workers.relaunch(START)
    assert waits(caplog) == []
    await die(workers)
    await workers.relaunch(START)
    await die(workers)
    await workers.relaunch(START)
    assert len(waits(caplog)) == 2


async def test_deaths_while_loading_are_deaths_in_a_row(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = make(Behaviour(die_loading=[2, 3]), healthy=0.0001)
    await workers.launch(START, ignore)
    await die(workers)
    await workers.relaunch(START)
    assert len(waits(caplog)) == 2
    assert [line for line in caplog.messages if "while loading" in line] == [
        f"worker 0 was killed by SIGKILL while loading (attempt {n} of 3): it is started again, "
        "and requests wait"
        for n in (1, 2)
    ]


async def test_three_deaths_while_loading_are_the_end(make: Make) -> None:
    workers = make(Behaviour(die_loading=[2, 3, 4]))
    await workers.launch(START, ignore)
    await die(workers)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await workers.relaunch(START)
    assert workers.group is None


async def test_ranks_whose_place_was_taken_meet_at_another_one(make: Make) -> None:
    workers = make(Behaviour(die_loading=[1, 2], exit_status=PLACE_TAKEN))
    await workers.launch(START, ignore)
    assert workers.group is not None


async def test_three_places_that_were_taken_are_the_end(make: Make) -> None:
    workers = make(Behaviour(die_loading=[1, 2, 3], exit_status=PLACE_TAKEN))
    with pytest.raises(PlaceTaken, match="another program took the port"):
        await workers.launch(START, ignore)


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


def standbys(workers: WorkerRestarter) -> list[int]:
    assert workers._standby is not None
    return workers._standby.pids


async def standing_by(make: Make, behaviour: Behaviour | None = None) -> WorkerRestarter:
    """Workers of which one serves, and another one is loaded."""
    workers = make(behaviour, standby=True)
    workers.stand_by(START, await workers.launch(START, ignore))
    await until(lambda: bool(standbys(workers)))
    return workers


async def test_a_worker_that_stands_by_takes_over_and_another_one_is_loaded(make: Make) -> None:
    workers = await standing_by(make)
    for _ in range(2):
        (waiting,) = standbys(workers)
        await die(workers)
        assert (await workers.relaunch(START)).n_blocks == 64
        assert workers.group is not None
        assert workers.group.pids == [waiting]
        workers.group.send(FIRST)
        assert (await workers.group.receive()).step == 1
        await until(lambda: bool(standbys(workers)))


async def test_one_that_is_being_loaded_takes_over_once_it_is(make: Make, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    workers = make(Behaviour(journal=str(journal), load_seconds=0.5), standby=True)
    workers.stand_by(START, await workers.launch(START, ignore))
    await until(lambda: journal.read_text().count("\n") == 2)
    assert standbys(workers) == []
    await die(workers)
    await workers.relaunch(START)
    loading = json.loads(journal.read_text().splitlines()[1])
    assert workers.group is not None
    assert workers.group.pids == [loading["pid"]]


async def test_the_standby_is_told_what_may_be_taken_beside_it(make: Make, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    await standing_by(make, Behaviour(journal=str(journal)))
    starts = [json.loads(line)["start"] for line in journal.read_text().splitlines()]
    assert [start[-1] for start in starts] == [0, 1]


async def test_a_standby_that_dies_is_replaced(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    workers = await standing_by(make)
    (first,) = standbys(workers)
    os.kill(first, signal.SIGKILL)
    await until(lambda: standbys(workers) not in ([], [first]))
    assert "the standby worker is gone: worker 0 was killed by SIGKILL" in caplog.messages


async def test_where_the_standby_is_dead_too_another_worker_is_started(make: Make) -> None:
    workers = await standing_by(make)
    (waiting,) = standbys(workers)
    os.kill(waiting, signal.SIGKILL)
    await until(lambda: standbys(workers) != [waiting])
    await die(workers)
    await workers.relaunch(START)
    assert workers.group is not None
    assert workers.group.pids != [waiting]


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (Behaviour(refuse={2: "no room"}), "there is no standby worker: no room"),
        (
            Behaviour(die_loading=[2, 3, 4]),
            "there is no standby worker: 3 died while they were loaded",
        ),
    ],
)
async def test_a_standby_that_cannot_be_loaded_is_done_without(
    make: Make, caplog: pytest.LogCaptureFixture, behaviour: Behaviour, said: str
) -> None:
    workers = make(behaviour, standby=True)
    workers.stand_by(START, await workers.launch(START, ignore))
    await until(lambda: said in caplog.messages)
    assert standbys(workers) == []
    await die(workers)
    await workers.relaunch(START)


async def test_on_a_gpu_none_stands_by(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    workers = make(standby=True)
    ready = await workers.launch(START, ignore)
    workers.stand_by(START, msgspec.structs.replace(ready, device="cuda:0"))
    assert "on a GPU there is no room" in caplog.text
    assert len(asyncio.all_tasks()) == 2  # this one, and that which waits for the worker

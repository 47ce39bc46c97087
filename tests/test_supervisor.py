from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.fake_engine_run import DEADLINE, ROOT, alive, until
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tgi_async.errors import StartError
from tgi_async.supervisor import ENVIRONMENT, WorkerDied, WorkerGroup
from tgi_async.wire.channel import RouterChannel
from tgi_async.wire.messages import (
    Admit,
    BatchConfig,
    Loading,
    ModelConfig,
    Refused,
    Run,
    Sampling,
    Start,
    Step,
)

START = Start(ModelConfig(""), BatchConfig(max_rows=4))
FIRST = Step(1, [], [Admit(0, [1, 2], 2, 0, [0], Sampling())], [], [Run(0, 2)])


class Groups:
    """Makes groups of fake workers, and ends them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.made: list[WorkerGroup] = []

    def make(self, behaviour: Behaviour | None = None, **options: Any) -> WorkerGroup:
        self._monkeypatch.setenv(VARIABLE, (behaviour or Behaviour()).environment())
        self._monkeypatch.setenv("PYTHONPATH", str(ROOT))
        number = len(self.made) + 1
        self.made.append(WorkerGroup(self._folder, number, **{"command": COMMAND, **options}))
        return self.made[-1]


@pytest.fixture
async def groups(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Groups]:
    groups = Groups(tmp_path_factory.mktemp("s"), monkeypatch)
    yield groups
    for group in groups.made:
        await group.kill()
        assert not any(map(alive, group.pids))


def ignore(loading: Loading) -> None:
    """Phases that a test does not look at."""


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def flood(group: WorkerGroup) -> None:
    for number in range(2, 100_000):
        group.send(Step(number, [], [], [], []))


async def test_a_group_loads_steps_and_stops(groups: Groups) -> None:
    group = groups.make()
    phases: list[Loading] = []
    ready = await group.launch(START, phases.append)
    assert (ready.n_blocks, ready.block_size) == (64, 4)
    assert [one.phase for one in phases] == ["loading weights"] * 2
    group.send(FIRST)
    assert [one.row for one in (await group.receive()).sampled] == [0]
    await group.stop(DEADLINE)
    assert [task.result() for task in group._exits] == [0]


async def test_the_smallest_cache_of_all_ranks_counts(groups: Groups) -> None:
    group = groups.make(Behaviour(n_blocks=7), world_size=2)
    assert (await group.launch(START, ignore)).n_blocks == 7
    assert len(set(group.pids)) == 2


async def test_one_dead_rank_is_the_death_of_the_group(groups: Groups) -> None:
    group = groups.make(world_size=2)
    await group.launch(START, ignore)
    os.kill(group.pids[1], signal.SIGKILL)
    with pytest.raises(WorkerDied, match="worker 1 was killed by SIGKILL"):
        await group.receive()
    await group.kill()
    assert not alive(group.pids[0])


async def test_a_refusal_is_heard_though_the_worker_is_gone(groups: Groups) -> None:
    group = groups.make(Behaviour(refuse={1: "not this one"}))
    with pytest.raises(StartError, match=r"^not this one$"):
        await group.launch(START, ignore)


async def test_last_words_may_come_after_the_exit(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = groups.make(command=(sys.executable, "-c", "pass"))

    channel, words = group._channel, [Refused("not this one")]

    def speak() -> None:
        monkeypatch.setattr(channel, "poll", words.pop)
        channel.wake()

    async def wait() -> None:
        if group._exits[0].done():
            asyncio.get_running_loop().call_later(0.02, speak)
        await RouterChannel.wait(channel)

    monkeypatch.setattr(channel, "wait", wait)
    with pytest.raises(StartError, match=r"^not this one$"):
        await group.launch(START, ignore)


async def test_a_worker_that_leaves_without_a_word_is_dead(groups: Groups) -> None:
    group = groups.make(command=(sys.executable, "-c", "pass"))
    with pytest.raises(WorkerDied, match="worker 0 exited with status 0"):
        await group.launch(START, ignore)


async def test_garbage_is_death(groups: Groups) -> None:
    group = groups.make(Behaviour(garbage_at={1: 1}))
    await group.launch(START, ignore)
    group.send(FIRST)
    with pytest.raises(WorkerDied, match="outside the wire"):
        await group.receive()


async def test_a_worker_that_reads_no_more_is_dead_to_the_sender(groups: Groups) -> None:
    group = groups.make(Behaviour(deaf_at={1: 1}))
    await group.launch(START, ignore)
    group.send(FIRST)
    with pytest.raises(WorkerDied, match="takes no more steps"):
        flood(group)


async def test_a_stop_waits_for_what_is_queued(groups: Groups) -> None:
    group = groups.make(Behaviour(step_seconds=0.1))
    await group.launch(START, ignore)
    group.send(FIRST)
    await group.stop(DEADLINE)
    assert [task.result() for task in group._exits] == [0]


async def test_a_cancelled_receive_loses_no_result(groups: Groups) -> None:
    group = groups.make(Behaviour(step_seconds=0.05))
    await group.launch(START, ignore)
    group.send(FIRST)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(group.receive(), 0.001)
    assert (await group.receive()).step == 1


async def test_a_later_epoch_works_beside_the_files_of_a_killed_one(groups: Groups) -> None:
    first = groups.make()
    await first.launch(START, ignore)
    await first.kill()
    second = groups.make()
    await second.launch(START, ignore)
    second.send(FIRST)
    assert (await second.receive()).step == 1


async def test_a_worker_is_out_of_reach_of_the_terminal(groups: Groups) -> None:
    group = groups.make()
    await group.launch(START, ignore)
    assert os.getsid(group.pids[0]) != os.getsid(0)


async def test_the_environment_suits_a_small_machine_and_yields_to_the_user(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    group = groups.make()
    await group.launch(START, ignore)
    environment = environment_of(group.pids[0])
    assert f"GOMP_SPINCOUNT={ENVIRONMENT['GOMP_SPINCOUNT']}" in environment
    assert "OMP_WAIT_POLICY=ACTIVE" in environment


ROUTER = """
import asyncio, pathlib, sys
from tests.doubles.fake_worker import COMMAND
from tests.test_supervisor import START, ignore
from tgi_async.supervisor import WorkerGroup

async def main():
    group = WorkerGroup(pathlib.Path(sys.argv[1]), 1, command=COMMAND)
    await group.launch(START, ignore)
    print(group.pids[0], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_workers_die_with_a_router_that_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("s")
    command = [sys.executable, "-c", ROUTER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as router:
        assert router.stdout is not None
        pid = int(router.stdout.readline())
        assert alive(pid)
        router.kill()
    asyncio.run(until(lambda: not alive(pid)))

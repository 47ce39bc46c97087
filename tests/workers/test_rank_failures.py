"""Ranks start together or fail together, with one message."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from safetensors.torch import load_file

from tests.doubles.fake_engine_run import alive
from tests.helpers.tiny_llama import save_tiny_llama
from tgi_async.errors import StartError
from tgi_async.supervisor import WORKER, WorkerDied, WorkerGroup
from tgi_async.wire.messages import (
    Admit,
    BatchConfig,
    CacheConfig,
    ModelConfig,
    Run,
    Sampling,
    Start,
    Step,
)
from workers.models.weight_files import SINGLE

PROMPT = [11, 12, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest_asyncio.fixture
async def groups(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[WorkerGroup]]:
    """What is put in here is killed in the end."""
    made: list[WorkerGroup] = []
    yield made
    for group in made:
        await group.kill()


def group_of(groups: list[WorkerGroup], folder: Path, *command: str) -> WorkerGroup:
    group = WorkerGroup(folder, 1, 2, command or WORKER)
    groups.append(group)
    return group


def start(model: Path) -> Start:
    return Start(
        ModelConfig(str(model), "float32", "transformers"),
        BatchConfig(max_rows=2, max_prefill_tokens=16),
        CacheConfig(n_blocks=[8], block_size=16),
    )


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("refused", StartError, "rank 1 does not like it"),
        pytest.param("raised", WorkerDied, "worker 1 exited with status 1", marks=pytest.mark.full),
        pytest.param(
            "killed",
            WorkerDied,
            "worker 1 was killed by SIGKILL",
            marks=pytest.mark.full,
        ),
    ],
)
async def test_one_rank_that_fails_to_load_ends_the_start(
    groups: list[WorkerGroup],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    how: str,
    error: type[Exception],
    message: str,
) -> None:
    place = tmp_path_factory.mktemp("s")
    command = (sys.executable, "-m", "tests.doubles.failing_rank", how)
    group = group_of(groups, place, *command)

    with pytest.raises(error, match=message):
        await group.launch(start(folder), lambda loading: None)
    await group.kill()

    assert not any(alive(pid) for pid in group.pids)


@pytest.mark.full
async def test_ranks_that_wait_for_one_that_hangs_are_ended_with_it(
    groups: list[WorkerGroup], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = (sys.executable, "-m", "tests.doubles.failing_rank", "hung")
    group = group_of(groups, tmp_path_factory.mktemp("s"), *command)
    loading = asyncio.Event()
    launched = asyncio.create_task(group.launch(start(folder), lambda _: loading.set()))
    await loading.wait()  # rank 0 has met rank 1, and goes on to what needs both

    launched.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launched
    await group.kill()

    assert not any(alive(pid) for pid in group.pids)


async def test_a_rank_that_dies_in_service_is_named_and_the_group_ends(
    groups: list[WorkerGroup], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    group = group_of(groups, tmp_path_factory.mktemp("s"))
    ready = await group.launch(start(folder), lambda loading: None)
    sizes = {name: one.numel() for name, one in load_file(folder / SINGLE).items()}
    norms = sum(n for name, n in sizes.items() if "norm" in name)
    assert ready.n_blocks == 8
    assert ready.weight_bytes == 4 * (sum(sizes.values()) + norms)  # those are on both ranks
    os.kill(group.pids[1], signal.SIGKILL)
    group.send(Step(1, [], [Admit(0, PROMPT, 3, 0, [0], Sampling())], [], [Run(0, 3)]))

    with pytest.raises(WorkerDied, match="worker 1 was killed by SIGKILL"):
        await group.receive()
    await group.kill()

    assert not any(alive(pid) for pid in group.pids)


@pytest.mark.full
@pytest.mark.parametrize(("how", "said"), [("stopped", "is stopped"), ("stuck", "no processor")])
async def test_a_rank_that_takes_no_part_in_a_collective_is_noticed_in_seconds(
    groups: list[WorkerGroup],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    how: str,
    said: str,
) -> None:
    command = (sys.executable, "-m", "tests.doubles.failing_rank", how) if how == "stuck" else ()
    group = group_of(groups, tmp_path_factory.mktemp("s"), *command)
    await group.launch(start(folder), lambda loading: None)
    if how == "stopped":
        os.kill(group.pids[1], signal.SIGSTOP)
    began = time.monotonic()
    group.send(Step(1, [], [Admit(0, PROMPT, 3, 0, [0], Sampling())], [], [Run(0, 3)]))

    with pytest.raises(WorkerDied, match=said):
        await group.receive()

    # Of a machine that is busy with other things too.
    assert time.monotonic() - began < 10
    await group.kill()
    assert not any(alive(pid) for pid in group.pids)


@pytest.mark.full
async def test_ranks_leave_in_order(
    groups: list[WorkerGroup], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    group = group_of(groups, tmp_path_factory.mktemp("s"))
    await group.launch(start(folder), lambda loading: None)

    await group.stop(30.0)

    assert [exit.result() for exit in group._exits] == [0, 0]

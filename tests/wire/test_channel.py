from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zmq

from tgi_async.errors import StartError
from tgi_async.wire.channel import HIGH_WATER, RouterChannel, WorkerChannel
from tgi_async.wire.codec import WireError
from tgi_async.wire.messages import Loading, Step, StepDone, Stop, ToRouter


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")  # a short name: a socket's path may have 107 bytes


@pytest.fixture
async def router(folder: Path) -> AsyncIterator[RouterChannel]:
    channel = RouterChannel(folder, 1, [0])
    yield channel
    channel.close()


@pytest.fixture
def worker(folder: Path, router: RouterChannel) -> Iterator[WorkerChannel]:
    channel = WorkerChannel(folder, 1, 0)
    yield channel
    channel.close()


async def receive(router: RouterChannel) -> ToRouter:
    """The next reply, waiting for it."""
    while (reply := router.poll()) is None:
        await router.wait()
    return reply


async def phase_of_next(router: RouterChannel) -> str:
    """The phase that the next reply, a note of progress, tells."""
    loading = await receive(router)
    assert isinstance(loading, Loading)
    return loading.phase


def step(number: int) -> Step:
    return Step(number, [], [], [], [])


async def test_frames_arrive_in_order_in_both_directions(
    router: RouterChannel, worker: WorkerChannel
) -> None:
    for number in range(20):
        router.send(step(number))
    router.send(Stop())
    assert [worker.receive() for _ in range(20)] == [step(number) for number in range(20)]
    assert worker.receive() == Stop()
    for number in range(20):
        worker.send(StepDone(number, [], [], [], 0.5, 0.25))
    replies = [await receive(router) for _ in range(20)]
    assert replies == [StepDone(number, [], [], [], 0.5, 0.25) for number in range(20)]


async def test_frames_wait_for_a_worker_that_is_not_there_yet(
    folder: Path, router: RouterChannel
) -> None:
    router.send(step(1))
    worker = WorkerChannel(folder, 1, 0)
    try:
        assert worker.receive() == step(1)
    finally:
        worker.close()


async def test_receiving_without_waiting_finds_nothing(
    router: RouterChannel, worker: WorkerChannel
) -> None:
    assert worker.receive(0) is None
    router.send(step(1))
    assert worker.receive() == step(1)
    assert worker.receive(0) is None


async def test_steps_go_to_rank_0_what_else_there_is_to_all_and_all_reply_to_one(
    folder: Path,
) -> None:
    router = RouterChannel(folder, 1, range(3))
    workers = [WorkerChannel(folder, 1, rank) for rank in range(3)]
    try:
        router.send(step(7))
        router.send(Stop())
        assert workers[0].receive() == step(7)
        assert [worker.receive() for worker in workers] == [Stop()] * 3
        for rank, worker in enumerate(workers):
            worker.send(Loading(f"rank {rank}", 0.0))
        phases = {await phase_of_next(router) for _ in workers}
        assert phases == {"rank 0", "rank 1", "rank 2"}
    finally:
        for worker in workers:
            worker.close()
        router.close()


async def test_polling_finds_what_is_there_and_does_not_wait(
    router: RouterChannel, worker: WorkerChannel
) -> None:
    assert router.poll() is None
    worker.send(Loading("first", 0.0))
    worker.send(Loading("second", 0.0))
    assert [await phase_of_next(router) for _ in range(2)] == ["first", "second"]
    assert router.poll() is None


async def test_a_reply_that_nobody_waited_for_is_not_missed(
    router: RouterChannel, worker: WorkerChannel
) -> None:
    for number in range(3):
        worker.send(Loading(str(number), 0.0))
        assert await receive(router) == Loading(str(number), 0.0)
        worker.send(Loading("meanwhile", 0.0))
        await asyncio.sleep(0.02)
        assert await receive(router) == Loading("meanwhile", 0.0)


async def test_who_waits_can_be_woken(router: RouterChannel, worker: WorkerChannel) -> None:
    waiting = asyncio.create_task(router.wait())
    await asyncio.sleep(0)
    router.wake()
    await waiting
    assert router.poll() is None


async def test_an_epoch_hears_nothing_of_another(folder: Path, router: RouterChannel) -> None:
    earlier = WorkerChannel(folder, 0, 0)
    earlier.send(Loading("a ghost", 0.0))
    worker = WorkerChannel(folder, 1, 0)
    worker.send(Loading("alive", 0.0))
    try:
        assert await receive(router) == Loading("alive", 0.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(router), 0.05)
    finally:
        worker.close()
        earlier._replies.setsockopt(zmq.LINGER, 0)
        earlier._steps.close()
        earlier._replies.close()
        earlier._context.term()


async def test_a_frame_outside_the_wire_is_an_error_and_the_next_is_read(
    router: RouterChannel, worker: WorkerChannel
) -> None:
    worker._replies.send(b"\x80 pickled?")
    worker.send(Loading("sense", 0.0))
    with pytest.raises(WireError):
        await receive(router)
    assert await receive(router) == Loading("sense", 0.0)


async def test_a_rank_that_reads_nothing_is_found_out(folder: Path, router: RouterChannel) -> None:
    for number in range(HIGH_WATER):
        router.send(step(number))
    with pytest.raises(zmq.Again):
        router.send(step(HIGH_WATER))


async def test_what_a_worker_sent_last_leaves_before_it_closes(
    folder: Path, router: RouterChannel
) -> None:
    worker = WorkerChannel(folder, 1, 0)
    worker.send(Loading("last words", 0.0))
    worker.close()
    assert await receive(router) == Loading("last words", 0.0)


async def test_closing_ends_who_waits_and_may_be_repeated(folder: Path) -> None:
    router = RouterChannel(folder, 1, [0])
    worker = WorkerChannel(folder, 1, 0)
    waiting = asyncio.create_task(receive(router))
    await asyncio.sleep(0)
    worker.close()
    router.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    router.close()


@pytest.mark.parametrize("name", ["x" * 120, "nowhere"])
async def test_a_folder_that_takes_no_socket_is_reported(folder: Path, name: str) -> None:
    with pytest.raises(StartError, match="TMPDIR"):
        RouterChannel(folder / name, 1, [0])

"""Frames that were spoiled on their way, and frames of somebody else on our sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zmq

from tests.doubles.fake_engine_run import running
from tests.doubles.fake_worker import Behaviour
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.results import UnexpectedResult
from tgi_async.wire.codec import VERSION, WireError, to_router_codec, to_worker_codec
from tgi_async.wire.messages import (
    Admit,
    BatchConfig,
    CacheConfig,
    CachePool,
    Constraint,
    Encoded,
    Grow,
    Image,
    Loading,
    ModelConfig,
    PixelArray,
    PromptLogprobs,
    Ready,
    Refused,
    RowError,
    Run,
    Sampled,
    Sampling,
    Span,
    Start,
    Step,
    StepCost,
    StepDone,
    Stop,
    TopToken,
)
from tgi_async.wire.nodes import (
    Ended,
    GroupOrder,
    GroupReport,
    NodeInfo,
    Order,
    Rejected,
    Report,
    to_leader_codec,
    to_member_codec,
)

SAMPLING = Sampling(
    do_sample=True,
    temperature=0.7,
    top_k=50,
    seed=2**64 - 1,
    biased_ids=[1, 300, 70_000],
    biases=[1.0, -100.0, 0.5],
    banned=[[1, 2], [3]],
    end_ids=[257],
)
ADMIT = Admit(
    *(3, list(range(200)), 200, 16, list(range(13)), SAMPLING),
    constraint=Constraint('["regex", "a+"]', 64),
    tenant="key 127.0.0.1",
    images=[Image(b"0" * 16, 4, 9, "/shared/a", [PixelArray("pixels", "float32", [3, 4, 4], 0)])],
    spans=[Span(4, 9)],
)
TO_WORKER = (
    Start(ModelConfig("/model"), BatchConfig(64), CacheConfig([100])),
    Step(1, [1, 2], [ADMIT], [Grow(5, [70, 71])], [Run(3, 184), Run(5, 1)]),
    Step(2**31 - 1, [], [], [], [Run(row, 1) for row in range(64)]),
    Stop(),
)
TO_ROUTER = (
    Loading("loading weights", 1.5, "mapped"),
    Ready(
        *([CachePool(100)], 16, 4096, 512, "cpu", [2, 257], 50_000, 10**9, 10**9, ["a note"]),
        prefill_costs=[StepCost(16, 0.01)],
    ),
    Refused("no such model"),
    StepDone(
        *(
            7,
            [
                Sampled(3, [5], [-0.5], [[TopToken(5, -0.5), TopToken(6, -1.5)]]),
                Sampled(4, [5, 6, 70_000], [-0.5, 0.0, -1.0], n_computed=2, n_drafts=4),
            ],
            [PromptLogprobs(3, 1, [-1.0] * 20, [[TopToken(1, -1.0)]] * 20, [1] * 20)],
            [RowError(9, "out of memory")],
            *(0.01, 0.001),
        ),
        masks_not_ready=[11],
        encoded=Encoded(1, 0.5),
    ),
)
TO_MEMBER = (
    Order("a leader", [GroupOrder(7, TO_WORKER[0])]),
    Rejected("the node has other files of the model"),
    Ended(),
)
NODE = NodeInfo(1, 2, 8, "1.0", "a digest", "a host")
TO_LEADER = (
    Report("a member", NODE),
    Report("a member", NODE, "a leader", (GroupReport(7, 0.5, 4096, False, TO_ROUTER[1]),)),
    Report("a member", NODE, "a leader", (GroupReport(7, None, 0, True, None, "no room", ""),)),
)
BOMBS = tuple(
    bytes((head,)) + n.to_bytes(4, "big")
    for head in b"\xdd\xdf\xdb\xc6\xc9"
    for n in (2**32 - 1, 2**26)
)
"""Beginnings of lists, maps, texts, bytes and extensions that are said to be very long."""
DEEP = (b"\x91" * 3000, b"\x81" * 3000, b"\x92\x91" * 1500)
ODD = (
    b"\x00\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xc3\xc4\xc7"
    b"\xca\xcb\xcc\xcf\xd0\xd3\xd4\xd9\xdc\xde\xe0\xff"
)
SECONDS = 0.5
"""More than one frame may take, on a machine that is busy with other things."""
MEGABYTES = 64


def spoiled(random: Random, frame: bytes, other: bytes) -> bytes:
    """The frame, changed in one to three ways."""
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(1, len(frame)) if len(frame) > 1 else 0
        match random.randrange(8):
            case 0:
                flipped = frame[place] ^ (1 << random.randrange(8))
                frame = frame[:place] + bytes((flipped,)) + frame[place + 1 :]
            case 1:
                frame = frame[:place]
            case 2:
                frame = frame[:place] + other[random.randrange(len(other)) :]
            case 3:
                frame = frame[:place] + random.choice(BOMBS) + frame[place + 1 :]
            case 4:
                frame = frame[:place] + random.choice(DEEP) + frame[place:]
            case 5:
                frame = frame[:place] + bytes((random.choice(ODD),)) + frame[place + 1 :]
            case 6:
                frame = frame[:place] + random.randbytes(random.choice((1, 8))) + frame[place:]
            case 7:
                frame = frame[:place] + frame[place + random.choice((1, 4, 30)) :]
        frame = frame or b"\0"
    return frame


def decode_spoiled(n: int, seed: int) -> dict[str, int]:
    """Decode `n` spoiled frames, and return how many were messages and how many were refused."""
    random = Random(seed)
    wires: Any = (to_worker_codec(), to_router_codec(), to_member_codec(), to_leader_codec())
    messages = zip(wires, (TO_WORKER, TO_ROUTER, TO_MEMBER, TO_LEADER), strict=True)
    frames = [[wire.encode(one) for one in many] for wire, many in messages]
    counts = {"read": 0, "refused": 0}
    for _ in range(n):
        direction = random.randrange(4)
        frame = spoiled(random, random.choice(frames[direction]), random.choice(frames[1]))
        began = time.thread_time()
        try:
            message = wires[direction].decode(frame)
        except WireError:
            counts["refused"] += 1
        else:
            counts["read"] += 1
            # What was read is of the schema: it can be said again.
            wires[direction].decode(wires[direction].encode(message))
        assert time.thread_time() - began < SECONDS, frame
    return counts


def most_memory() -> int:
    """Megabytes that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_a_spoiled_frame_is_a_message_or_a_wire_error() -> None:
    before = most_memory()
    counts = decode_spoiled(20_000, 1)
    assert min(counts.values()) > 500, counts
    assert most_memory() - before < MEGABYTES


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_spoiled_frames_are_messages_or_wire_errors() -> None:
    before = most_memory()
    for part in range(50):
        decode_spoiled(20_000, 1000 + part)
    assert most_memory() - before < MEGABYTES


def answer(step: Step) -> StepDone:
    """What an honest worker replies."""
    scores = [
        PromptLogprobs(admit.row, 1, [-1.0] * 2, [], [1] * 2)
        for admit in step.admit
        if admit.prompt_logprobs
    ]
    return StepDone(step.step, [Sampled(run.row, [65]) for run in step.run], scores, [], 0.1, 0.1)


def nonsense(random: Random, honest: StepDone) -> StepDone:
    """The honest result with one to three things that mean nothing."""
    sampled, scores = list(honest.sampled), list(honest.prompt_logprobs)
    errors, postponed, step = [], [], honest.step
    for _ in range(random.choice((1, 1, 2, 3))):
        row = random.choice((0, 1, 1, 2, 2**31 - 1))
        n = random.choice((1, 1, 1, 2, 70))
        match random.randrange(6):
            case 0:
                sampled[random.randrange(len(sampled))] = Sampled(
                    random.choice((sampled[0].row, row)),
                    [random.choice((65, 257, 2**31 - 1))] * n,
                    [random.choice((-0.5, float("nan"), float("inf")))]
                    * random.choice((0, n, n + 1)),
                    [[TopToken(2**31 - 1, 0.0)] * random.choice((0, 1, 100))]
                    * random.choice((0, n, n + 1)),
                    random.choice((0, 0, 1, 2**31 - 1)),
                    random.choice((0, 0, 1, 2**31 - 1)),
                )
            case 1:
                del sampled[random.randrange(len(sampled)) :]
                sampled = sampled or list(honest.sampled)
            case 2:
                n = random.choice((0, 1, 4, 5000))
                start = random.choice((0, 1, 2, 2**31 - 1))
                scores.append(PromptLogprobs(row, start, [-1.0] * n, [], [1]))
            case 3:
                errors.append(RowError(row, "\0" * random.choice((0, 10_000))))
            case 4:
                postponed.append(row)
            case 5:
                step = random.choice((step, step + 1, 0, 2**31 - 1))
    return StepDone(step, sampled, scores, errors, float("nan"), -1.0, postponed)


def test_a_result_that_means_nothing_is_unexpected_and_changes_nothing() -> None:
    random = Random(1)
    budget = Budget(
        pools=(CachePool(64),),
        block_size=4,
        max_rows=8,
        max_batch_prefill_tokens=32,
        max_total_tokens=64,
    )
    refused = taken = 0
    for _ in range(2000):
        core = Core(budget)
        for number in (1, 2):
            core.submit(Request(number, [65, 66, 67], 8, prompt_logprobs=number == 1))
        waiting: list[Step] = []
        spoiled_at = random.randrange(4)
        n_done = 0
        while core.running or core.waiting or waiting:
            while (plan := core.plan()) is not None:
                waiting.append(plan.step)
            done: StepDone | None = answer(waiting.pop(0))
            if n_done == spoiled_at and done is not None and done.sampled:
                try:
                    core.complete(nonsense(random, done))
                except UnexpectedResult:
                    refused += 1
                else:
                    taken += 1
                    done = None
            if done is not None:
                core.complete(done)
            n_done += 1
        assert core.blocks.n_used == 0
    assert min(refused, taken) > 300, (refused, taken)


FOREIGN: tuple[list[bytes], ...] = (
    [b""],
    [b"\x80\x04\x95pickle"],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [bytes((VERSION,)) + b"\xdd\xff\xff\xff\xff"],
    [to_router_codec().encode(one) for one in TO_ROUTER],
    [to_router_codec().encode(TO_ROUTER[3])],
    [to_worker_codec().encode(TO_WORKER[1])],
)


@pytest.mark.parametrize(
    "frames",
    [FOREIGN[1:2] + FOREIGN[4:6], pytest.param(FOREIGN, marks=pytest.mark.full)],
    ids=["some", "all"],
)
async def test_frames_of_others_on_the_workers_socket_cost_a_pause(
    tmp_path: Path, frames: tuple[list[bytes], ...]
) -> None:
    behaviour = Behaviour(n_blocks=400, step_seconds=0.002)
    async with running(behaviour, tmp_path) as run:
        context = zmq.Context()
        try:
            for epoch, parts in enumerate(frames, 1):
                generation = run.submit("the witness", 40)
                await anext(generation)
                with context.socket(zmq.PUSH) as socket:
                    socket.connect(f"ipc://{run.folder / f'replies-{epoch}'}")
                    socket.send_multipart(parts)
                    ids = list(run.expected("the witness", 40))
                    found = [token.id async for look in generation for token in look.tokens]
                    assert found == ids[len(ids) - len(found) :]
                    while run.engine.worker_restarts < epoch:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                    while not run.engine.ready:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
        finally:
            context.destroy(linger=0)


async def test_sockets_are_files_that_only_this_user_can_reach(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        await run.generate("a", 2)
        mode = run.folder.stat()
        assert (stat.S_IMODE(mode.st_mode), mode.st_uid) == (0o700, os.getuid())
        sockets = [path for path in run.folder.iterdir() if path.is_socket()]
        assert {path.name for path in sockets} >= {"replies-1", "steps-1-0"}
        assert not open_sockets({run.starts[0]["pid"], os.getpid()}) & listening_sockets()


def open_sockets(pids: set[int]) -> set[str]:
    """The sockets that these processes have open, as the kernel names them."""
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(link))
    return {name for name in found if name.startswith("socket:")}


def listening_sockets() -> set[str]:
    """All sockets of this machine that listen on a TCP port."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {f"socket:[{line[9]}]" for line in lines if line[3] == "0A"}

"""A backend that is registered by its name serves as the built-in ones do."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers.tiny_llama import save_tiny_llama
from tests.workers.test_worker import greedy, refusal, run, start
from tgi_async.wire.channel import RouterChannel
from tgi_async.wire.messages import (
    Admit,
    Loading,
    Ready,
    Refused,
    Run,
    Sampling,
    Step,
    StepDone,
    Stop,
    ToRouter,
)

N_STEPS = 6
PROMPTS = [[11, 12, 13], [3 + 7 * i % 90 for i in range(30)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def steps() -> list[Step]:
    """Two prompts of which the second comes in two chunks beside the first one's decodes."""
    admits = [
        Admit(row, prompt, len(prompt), 0, [7 * row + i for i in range(7)], Sampling(logprobs=True))
        for row, prompt in enumerate(PROMPTS)
    ]
    first = Step(1, [], admits, [], [Run(0, 3), Run(1, 17)])
    second = Step(2, [], [], [], [Run(0, 1), Run(1, 13)])
    return [
        first,
        second,
        *(Step(at, [], [], [], [Run(1, 1), Run(0, 1)]) for at in range(3, N_STEPS + 1)),
    ]


async def served(model: Path) -> list[ToRouter]:
    """What a worker process sends that has the toy backend."""
    with tempfile.TemporaryDirectory() as sockets:
        channel = RouterChannel(Path(sockets), 1, [0])
        given = ("--folder", sockets, "--epoch", "1", "--rank", "0", "--router", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.workers.attention.toy", *given
        )
        found: list[ToRouter] = []

        async def until(*kinds: type[ToRouter]) -> None:
            while not (found and isinstance(found[-1], kinds)):
                message = channel.poll()
                if message is None:
                    await asyncio.wait_for(channel.wait(), 120)
                elif not isinstance(message, Loading):
                    found.append(message)

        try:
            channel.send(start(model, attention="toy"))
            await until(Ready, Refused)
            for step in steps() if isinstance(found[-1], Ready) else ():
                channel.send(step)
                found.append(Loading("stepping", 0.0))
                await until(StepDone)
            channel.send(Stop())
            assert await asyncio.wait_for(process.wait(), 60) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            channel.close()
    return [message for message in found if not isinstance(message, Loading)]


async def test_it_says_over_the_wire_what_the_kernel_in_c_says(folder: Path) -> None:
    ready, *done = await served(folder)
    assert isinstance(ready, Ready)
    assert ready.block_size == 8  # the page that it wants
    (note,) = ready.notes
    assert "transformers' code, which is slower: it attends by toy" in note
    native = run(start(folder, attention="native"), *steps(), Stop())
    assert (native.ready.block_size, native.ready.notes) == (16, [])
    assert len(done) == len(native.results) == N_STEPS
    said: dict[int, list[int]] = {0: [], 1: []}
    for ours, theirs in zip(done, native.results, strict=True):
        assert isinstance(ours, StepDone)
        assert ours.errors == theirs.errors == []
        for one, other in zip(ours.sampled, theirs.sampled, strict=True):
            assert (one.row, one.tokens) == (other.row, other.tokens)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            said[one.row] += one.tokens
    assert said[0] == greedy(folder, N_STEPS)
    assert len(said[1]) == N_STEPS - 1


def test_a_name_that_nobody_registered_is_refused(folder: Path) -> None:
    said = refusal(folder, attention="unheard")
    assert "--attention is auto or one of native, torch, triton, flash, varlen" in said
    assert "not unheard" in said

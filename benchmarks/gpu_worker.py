"""A worker in this process, and the router's end of it: steps are sent one ahead.

The worker is the one that serves, from its first frame to its last, so that what is measured is
its own loop: it is handed the next step before the results of the last one are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import torch

from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import (
    Admit,
    BatchConfig,
    DeviceConfig,
    Loading,
    ModelConfig,
    Ready,
    Refused,
    Run,
    Sampling,
    Start,
    Step,
    StepDone,
    Stop,
    ToRouter,
    ToWorker,
)
from workers.worker import Worker

Steps = Generator[Step | None, None, None]
"""Steps in order. None where the driver should wait until all results are fetched."""
HELD_CYCLES = 60_000_000
"""Some 30 ms of a GPU's time: longer than the host takes to launch a step."""
GREEDY = Sampling()


class Mark(NamedTuple):
    """A moment: when the host passed it, and when the device does."""

    host: float
    event: torch.cuda.Event | None


class Clock:
    """The clock of the device, or of the host where the device is the CPU."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")

    def mark(self) -> Mark:
        """Mark the end of all that has been launched so far."""
        event = None
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return Mark(time.perf_counter(), event)

    def hold(self) -> None:
        """Keep the GPU busy for a while, so that what is launched meanwhile waits for it, and then
        runs without waiting for the host."""
        torch.cuda._sleep(HELD_CYCLES)

    @staticmethod
    def seconds(marks: Sequence[Mark]) -> list[float]:
        """Return the seconds from each to the next; waits for the last one."""
        if marks[-1].event is not None:
            marks[-1].event.synchronize()
        return [_between(*pair) for pair in pairwise(marks)]


def _between(begin: Mark, end: Mark) -> float:
    if begin.event is None or end.event is None:
        return end.host - begin.host
    return float(begin.event.elapsed_time(end.event)) / 1e3


class Driver:
    """Stands in for a worker's channel."""

    def __init__(self, start: Start) -> None:
        self.clock = Clock("cpu")
        self.done: dict[int, StepDone] = {}
        """The results of each step."""
        self.phases: dict[str, float] = {}
        """Seconds of each phase of the start."""
        self._start = start
        self._plan: Callable[[Driver, Ready], Steps] | None = None
        self._steps: Steps | None = None
        self._left: list[int] = []
        self._in_flight = 0
        self._idling = False
        self._number = 0

    def run(self, plan: Callable[[Driver, Ready], Steps]) -> None:
        """Start a worker, and let it run the steps of `plan`.

        Raises RuntimeError where it refuses the model, or a row fails.
        """
        self._plan = plan
        Worker(cast(WorkerChannel, self)).run()

    def step(self, run: list[Run], admit: Sequence[Admit] = ()) -> Step:
        """Return the next step; rows that left are released before others are admitted."""
        self._number += 1
        release, self._left = self._left, []
        return Step(self._number, release, list(admit), [], run)

    def leave(self, rows: int) -> None:
        """Note that so many rows, all there are, have ended."""
        self._left = list(range(rows))

    # -- what the worker calls -------------------------------------------------------------------

    def receive(self, milliseconds: int | None = None) -> ToWorker | None:
        if self._steps is None:
            return self._start
        while not (self._idling and self._in_flight):
            try:
                step = next(self._steps)
            except StopIteration:
                return Stop()
            self._idling = step is None
            if step is not None:
                self._in_flight += 1
                return step
        if milliseconds is None:
            raise RuntimeError(
                "the worker waits for a step, and has not said what came of the last"
            )
        time.sleep(milliseconds / 1e3)
        return None

    def send(self, message: ToRouter) -> None:
        match message:
            case Ready():
                self.clock = Clock(message.device)
                assert self._plan is not None
                self._steps = self._plan(self, message)
            case Loading():
                self.phases[message.phase] = message.seconds
            case Refused():
                raise RuntimeError(message.message)
            case StepDone():
                if message.errors:
                    raise RuntimeError(f"a row failed: {message.errors[0].message}")
                self.done[message.step] = message
                self._in_flight -= 1


class Pool:
    """The blocks of a worker's cache, given to rows in random order, as after a while of
    serving."""

    def __init__(self, ready: Ready) -> None:
        self.n_blocks, self.block_size = ready.n_blocks, ready.block_size
        self._draw = torch.Generator().manual_seed(0)
        self._vocab_size = ready.vocab_size

    def needed(self, rows: int, tokens: int) -> int:
        """Return the blocks for so many rows of so many tokens."""
        return rows * -(-tokens // self.block_size)

    def rows(self, rows: int, tokens: int) -> list[list[int]]:
        """Return the blocks of each row, from as few as possible."""
        order = torch.randperm(self.needed(rows, tokens), generator=self._draw)
        return cast(list[list[int]], order.view(rows, -1).tolist())

    def admit(self, row: int, tokens: int, cached: int, blocks: list[int]) -> Admit:
        prompt = torch.randint(self._vocab_size, (tokens,), generator=self._draw).tolist()
        return Admit(row, prompt, tokens, cached, blocks, GREEDY)


def start_of(folder: Path, attention: str, max_rows: int, max_total_tokens: int) -> Start:
    """Return a worker's start message as the router sends it, but for these limits."""
    return Start(
        ModelConfig(str(folder), "bfloat16", max_total_tokens=max_total_tokens),
        BatchConfig(max_rows),
        device=DeviceConfig(attention),
    )

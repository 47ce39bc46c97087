"""A worker without a model, for measuring the router: it answers each step at once, or at a set
pace.

Started like the real one, by the router. Every row gets the tokens of one text, over and over, each
row from another place of it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import msgspec

from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import CachePool, Ready, Sampled, Start, Step, StepDone, Stop
from workers.parent_death import die_with_parent

VARIABLE = "ROUTER_BENCHMARK_WORKER"
BLOCK_SIZE = 16


class Pace(msgspec.Struct):
    """The worker's settings, from the environment. `step_seconds` 0: as fast as it can."""

    tokens: list[int]
    step_seconds: float
    n_blocks: int = 262_144
    vocab_size: int = 1_000_000


class MadeUpRows:
    """Knows which rows sample, and gives them the tokens of a text."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._left: dict[int, int] = {}
        """Known tokens of each row that are not computed yet."""

    def execute(self, step: Step) -> StepDone:
        left, tokens = self._left, self._tokens
        for admit in step.admit:
            left[admit.row] = len(admit.tokens) - admit.n_cached
        sampled = []
        for run in step.run:
            left[run.row] -= run.n
            if left[run.row] == 0:
                left[run.row] = 1
                token = tokens[(step.step + 7 * run.row) % len(tokens)]
                sampled.append(Sampled(run.row, [token], [-0.123456789]))
        return StepDone(step.step, sampled, [], [], 0.0, 0.0)


def ready(start: Start, pace: Pace) -> Ready:
    """Return its `Ready`: room for everything, and no end-of-text token."""
    return Ready(
        pools=[CachePool(n) for n in start.cache.n_blocks or [pace.n_blocks]],
        block_size=BLOCK_SIZE,
        max_total_tokens=65_536,
        max_batch_prefill_tokens=start.batch.max_prefill_tokens or 8192,
        device="none",
        eos_token_ids=[],
        vocab_size=pace.vocab_size,
        kv_cache_bytes=0,
        weight_bytes=0,
        notes=[],
        kv_cache_dtype="none",
    )


def work(channel: WorkerChannel, pace: Pace) -> None:
    """Answer steps until the router stops it."""
    start = channel.receive()
    assert isinstance(start, Start)
    channel.send(ready(start, pace))
    rows = MadeUpRows(pace.tokens)
    due = 0.0
    while isinstance(step := channel.receive(), Step):
        done = rows.execute(step)
        due = max(due + pace.step_seconds, time.monotonic())
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        channel.send(done)
    assert isinstance(step, Stop)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--router", type=int, required=True)
    given = parser.parse_args()
    die_with_parent(given.router)
    pace = msgspec.json.decode(os.environ[VARIABLE], type=Pace)
    channel = WorkerChannel(given.folder, given.epoch, given.rank)
    try:
        work(channel, pace)
    finally:
        channel.close()


if __name__ == "__main__":
    main()

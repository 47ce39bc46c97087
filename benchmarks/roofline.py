"""Steps of a worker against the machine's limits, both measured in this run.

    python -m benchmarks.roofline [--model-id FOLDER] [--threads 2] [--context 200] [--passes 60]

A step of a worker, in process: building the batch, the forward pass, sampling (greedy), a result
as it goes to the router. What it cannot do without: to read all weights once and the keys and
values of its rows, and to multiply. Loops that do nothing else take turns with the steps, a read of
as many bytes and as many bfloat16 products, because the rate of memory changes from second to
second; the longer of the two is the floor, for they overlap. Shown are medians, the best step, and
the floor as a share of the step, median by median and best by best.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tgi_async.wire.messages import Admit, ModelConfig, Run, Sampling, Step
from workers import native
from workers.attention.cache import PagedCache
from workers.models.description import Shape
from workers.models.embedded import prepare_embedded
from workers.models.loading import Loaded, load
from workers.runner import Runner
from workers.sampling import Sampler
from workers.table import RowTable

HERE = Path(__file__).parent
MOST_BYTES = 1 << 30
BLOCK_SIZE = 16
DECODES = (1, 2, 4, 8, 16, 32, 64, 128)
CHUNKS = ((512, 0), (512, 688))
"""(tokens, positions before them)"""


class Need(NamedTuple):
    """The least work of a step."""

    bytes: float
    operations: float


class Machine:
    """The machine's limits, with as many threads as the worker has."""

    def __init__(self) -> None:
        """Measure the limits. Raises NativeUnavailable without a compiler."""
        self._library = native.load(HERE / "roofline.c", *native.SOURCES[:1])
        self._library.read_all.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self._library.multiply_all.restype = ctypes.c_int64
        # Pages that are alike may be one page to the host of a virtual machine.
        self._memory = torch.empty(MOST_BYTES // 8, dtype=torch.int64).random_()
        self._threads = torch.get_num_threads()
        self.operations = max(self._operations_a_second() for _ in range(9))

    def floor(self, need: Need) -> float:
        """Measure the seconds for the least work of a step."""
        n = min(int(need.bytes), MOST_BYTES)
        read = timed(lambda: self._library.read_all(self._memory.data_ptr(), n, self._threads))
        return max(read * need.bytes / n, need.operations / self.operations)

    def _operations_a_second(self) -> float:
        units = 32 * self._threads
        one: int = self._library.multiply_all(1, 1)
        return one * units / timed(lambda: self._library.multiply_all(units, self._threads))


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class Sizes(NamedTuple):
    """Parameters that a forward pass multiplies with."""

    layers: int
    head: int

    @classmethod
    def of(cls, folder: Path) -> Sizes:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        head = config.vocab_size * config.hidden_size
        layers = sum(one.numel() for one in model.model.layers.parameters())
        return cls(layers, head)


def need(shape: Shape, sizes: Sizes, rows: int, tokens: int, context: float) -> Need:
    """Of `rows` rows with `tokens` tokens each, whose last one sees `context` positions and is
    sampled."""
    seen = context - (tokens - 1) / 2
    kept = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * 2
    attended = 4 * shape.n_layers * shape.n_heads * shape.head_dim * seen
    return Need(
        2 * sum(sizes) + rows * context * kept,
        rows * tokens * (2 * sizes.layers + attended) + 2 * rows * sizes.head,
    )


class Batch:
    """A worker's runner whose rows go on decoding."""

    def __init__(self, model: Loaded, rows: int, longest: int) -> None:
        shape = model.shape
        cpu = torch.device("cpu")
        self.blocks = -(-longest // BLOCK_SIZE)
        cache = PagedCache(
            shape.n_layers,
            rows * self.blocks,
            BLOCK_SIZE,
            shape.n_kv_heads,
            shape.head_dim,
            torch.bfloat16,
        )
        table = RowTable(rows, self.blocks * BLOCK_SIZE, BLOCK_SIZE, cpu)
        self.runner = Runner(model, table, cache, Sampler(rows, shape.vocab_size, cpu))
        self.steps = 0

    def step(self, admit: list[Admit], run: list[Run], release: list[int] | None = None) -> float:
        """Run a step. Return its seconds."""
        self.steps += 1
        message = Step(self.steps, release or [], admit, [], run)
        return timed(lambda: self.runner.collect(self.runner.launch(message)))

    def admit(self, row: int, length: int) -> Admit:
        blocks = list(range(row * self.blocks, (row + 1) * self.blocks))
        prompt = torch.randint(1000, (length,)).tolist()
        return Admit(row, prompt, length, 0, blocks, Sampling())


def decodes(model: Loaded, rows: int, context: int, passes: int) -> Iterator[float]:
    """Return the seconds of each step of a full batch."""
    batch = Batch(model, rows, context + passes)
    for row in range(rows):
        for at in range(0, context, 512):
            admit = [batch.admit(row, context)] if at == 0 else []
            batch.step(admit, [Run(row, min(512, context - at))])
    for _ in range(passes):
        yield batch.step([], [Run(row, 1) for row in range(rows)])


def chunks(model: Loaded, tokens: int, before: int, passes: int) -> Iterator[float]:
    """Return the seconds of each step with a chunk of a prompt."""
    batch = Batch(model, 1, before + tokens)
    for _ in range(passes):
        release = [0] if batch.steps else []
        admit = [batch.admit(0, before + tokens)]
        if before:
            batch.step(admit, [Run(0, before)], release)
            release, admit = [], []
        yield batch.step(admit, [Run(0, tokens)], release)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-id", type=Path, help="a folder; default: the embedded model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--passes", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    machine = Machine()
    print(f"{given.threads} threads do {machine.operations / 1e9:.0f} GFLOP/s; times in ms\n")
    folder = given.model_id or prepare_embedded()
    sizes = Sizes.of(folder)
    model = load(ModelConfig(str(folder)), torch.bfloat16, torch.device("cpu"))
    print(f"{'':30}{'MB':>8}{'GFLOP':>8}{'floor':>8}{'step':>8}{'share':>8}{'best':>8}{'share':>8}")
    for rows in DECODES:
        wanted = need(model.shape, sizes, rows, 1, given.context + given.passes // 2)
        steps = decodes(model, rows, given.context, given.passes)
        report(f"{rows} decode at {given.context}", wanted, machine, steps)
    for tokens, before in CHUNKS:
        wanted = need(model.shape, sizes, 1, tokens, before + tokens)
        steps = chunks(model, tokens, before, max(3, given.passes // 8))
        report(f"{tokens} of a prompt after {before}", wanted, machine, steps)


def report(what: str, wanted: Need, machine: Machine, steps: Iterator[float]) -> None:
    pairs = [(took, machine.floor(wanted)) for took in steps]
    took, floors = (sorted(column) for column in zip(*pairs, strict=True))
    floor, step = statistics.median(floors), statistics.median(took)
    print(
        f"{what:30}{wanted.bytes / 1e6:8.0f}{wanted.operations / 1e9:8.1f}{floor * 1e3:8.2f}"
        f"{step * 1e3:8.2f}{floor / step:8.0%}{took[0] * 1e3:8.2f}{floors[0] / took[0]:8.0%}",
        flush=True,
    )


if __name__ == "__main__":
    main()

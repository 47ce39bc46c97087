"""One rank of a model whose decode steps are replayed, by doubles of what a GPU does.

`python -m tests.helpers.rank_graphs RANK WORLD_SIZE MODEL FOLDER`. The ranks meet in FOLDER, where
rank 0 leaves the tokens of two prompts and how many rows the graphs had that each rank ran.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.doubles.device_doubles import Counted, DeviceAttention, HostSampling, Replaying
from tests.helpers.loading import load
from tgi_async.wire.messages import Admit, Run, Sampling, Step
from workers import executor as executing
from workers.executor import Executor
from workers.graphs.decode import GraphPlan
from workers.ranks import Ranks
from workers.sampling import Sampler
from workers.tensor_parallel import DriverRank, FollowerRank

CPU = torch.device("cpu")
PROMPTS = [[11, 12, 13], [3 + 7 * i % 90 for i in range(30)]]
N_TOKENS = 6


def sampling_sampler(self: Executor, max_rows: int = 0) -> Sampler:
    sampler = Sampler(max_rows or self.max_rows, self.model.spec.vocab_size, self.device)
    sampler.device_sampling = HostSampling()
    return sampler


def main(rank: int, world_size: int, model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    Executor._sampler = sampling_sampler  # type: ignore[method-assign]
    made: list[Counted] = []

    class Kept(Counted):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self)

    executing.DecodeGraphs = Kept  # type: ignore[attr-defined, assignment]  # where it is made
    ranks = Ranks(rank, world_size, f"file://{folder}/meet", CPU)
    loaded = load(model, torch.float32, CPU, "transformers", ranks, attention=DeviceAttention)
    driver = None if rank else DriverRank(loaded, ranks)
    executor = Executor(loaded, CPU, 4, 64, 16, 4, None, ranks, driver)
    plan = GraphPlan(Replaying(), [1, 2, 4])
    runner = executor.serving(40, plan)
    assert plan.notes == []
    if isinstance(runner, FollowerRank):
        runner.run()
    else:
        said: list[list[int]] = [[], []]
        admits = [
            Admit(row, prompt, len(prompt), 0, list(range(20 * row, 20 * row + 12)), Sampling())
            for row, prompt in enumerate(PROMPTS)
        ]
        runs = [Run(row, len(prompt)) for row, prompt in enumerate(PROMPTS)]
        for number in range(N_TOKENS):
            done = runner.collect(runner.launch(Step(number, [], admits, [], runs)))
            for one in done.sampled:
                said[one.row] += one.tokens
            admits = []
            runs = [Run(0, 1)] if number == 2 else [Run(1, 1), Run(0, 1)]
        assert driver is not None
        driver.end()
        (folder / "said.json").write_text(json.dumps(said))
    (folder / f"ran-{rank}.json").write_text(json.dumps(made[0].ran))
    runner.close()
    assert made[0].sizes == []
    ranks.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))

"""One of two ranks that serve small models of images.

`python -m tests.families.vision_two_ranks RANK FOLDER IMPLEMENTATION KIND...`: models by kind, each
saved in FOLDER/KIND beside `prompts`, its prompts pickled. The ranks meet in FOLDER, and rank 0
leaves what it served in FOLDER/KIND/served, pickled.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from tests.families.parity import CPU
from tests.families.vision_cases import CASES
from tests.families.vision_parity import pool_of, serve
from tests.helpers.loading import load
from workers.ranks import Ranks
from workers.tensor_parallel import FollowerRank


def main(rank: int, folder: Path, implementation: str, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, 2, f"file://{folder}/meet", CPU)
    for kind in kinds:
        path = folder / kind
        given = pickle.loads((path / "prompts").read_bytes())
        model = load(path, torch.float32, CPU, implementation, ranks)
        if rank == 0:
            served = serve(CASES[kind], model, given, path, ranks)
            (path / "served").write_bytes(pickle.dumps(served))
        else:
            FollowerRank(model, ranks, pool_of(model, given), CPU).run()
    ranks.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])

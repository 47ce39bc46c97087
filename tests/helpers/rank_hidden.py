"""One rank of models on several: what rank 0 has of their hidden states, and of their heads.

`python -m tests.helpers.rank_hidden RANK WORLD_SIZE FOLDER MODEL...`, a model being
`implementation:folder`. The ranks meet in FOLDER, where rank 0 leaves a file for each model: hidden
states of each row, and the scores of the head for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.helpers.loading import load
from tests.helpers.paged_sequences import PagedSequences
from workers.ranks import Ranks
from workers.tensor_parallel import DriverRank, FollowerRank

CPU = torch.device("cpu")


@torch.inference_mode()
def main(rank: int, world_size: int, folder: Path, models: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, world_size, f"file://{folder}/meet", CPU)
    for at, model in enumerate(models):
        implementation, _, path = model.partition(":")
        loaded = load(Path(path), torch.float32, CPU, implementation, ranks)
        if rank:
            FollowerRank(loaded, ranks, PagedSequences(loaded).cache, CPU).run()
            continue
        driver = DriverRank(loaded, ranks)
        sequences = PagedSequences(loaded, driver)
        sequences.run()
        hidden = [torch.cat(parts) for parts in sequences.hidden]
        assert driver.head(hidden[0][:0]).shape == (0, loaded.spec.vocab_size)
        torch.save((hidden, [driver.head(one) for one in hidden]), folder / f"{at}.pt")
        driver.end()
    ranks.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])

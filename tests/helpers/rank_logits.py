"""One rank of models that are spread over several: writes the logits that rank 0 has of them.

`python -m tests.helpers.rank_logits RANK WORLD_SIZE FOLDER MODEL...`, a model being
`implementation:folder`, or `implementation,kv_cache_dtype:folder`. The ranks meet in FOLDER, which
gets a file of logits for each model from rank 0, and one of what the weights take from each rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.helpers.loading import load
from tests.helpers.paged_sequences import PagedSequences
from workers.models.loading import Loaded
from workers.ranks import Ranks

CPU = torch.device("cpu")


def load_named(implementation: str, path: Path, ranks: Ranks | None = None) -> Loaded:
    """Load a model in float32; behind a comma, `implementation` may have its cache's dtype."""
    implementation, _, kv_cache_dtype = implementation.partition(",")
    return load(path, torch.float32, CPU, implementation, ranks, kv_cache_dtype=kv_cache_dtype)


def main(rank: int, world_size: int, folder: Path, models: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, world_size, f"file://{folder}/meet", CPU)
    held: dict[str, int] = {}
    for at, model in enumerate(models):
        implementation, _, path = model.partition(":")
        loaded = load_named(implementation, Path(path), ranks)
        held[model] = loaded.weight_bytes
        logits = PagedSequences(loaded).run()
        if rank == 0:
            torch.save(logits, folder / f"{at}.pt")
    (folder / f"bytes-{rank}.json").write_text(json.dumps(held))
    ranks.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])

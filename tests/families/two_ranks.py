"""One of two ranks that serve small models, forced to the texts of a single rank.

`python -m tests.families.two_ranks RANK FOLDER NAME...`: cases by name, each saved in FOLDER/NAME
beside `texts.pt`, the tokens of its rows. The ranks meet in FOLDER, and rank 0 leaves the logits in
FOLDER/NAME/ranks.pt, or why there are none as a string.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.families.cases import CASES
from tests.families.parity import CPU, Text, forced
from tests.helpers.loading import load
from workers.errors import UnsupportedModel
from workers.ranks import Ranks


def main(rank: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, 2, f"file://{folder}/meet", CPU)
    for name in names:
        path = folder / name
        case = CASES[name]
        found: list[Text] | str
        try:
            model = load(
                path,
                torch.float32,
                CPU,
                implementation="transformers",
                ranks=ranks,
                max_total_tokens=case.max_total_tokens,
            )
            found = forced(model, torch.load(path / "texts.pt"))
        except (UnsupportedModel, RuntimeError, ValueError) as error:
            found = str(error)
        if rank == 0:
            saved = found if isinstance(found, str) else [text.logits for text in found]
            torch.save(saved, path / "ranks.pt")
    ranks.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

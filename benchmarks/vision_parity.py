"""Write the table of families that take images into docs/models.md.

`python -m benchmarks.vision_parity` makes the small models of tests/families/vision_cases.py,
serves each on one rank and on two, and compares it with transformers' own code in float32; `--only
NAME` (repeatable) prints rows instead.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.parity import TABLE
from tests.families.parity import CPU
from tests.families.vision_cases import CASES, Prompt, prompts
from tests.families.vision_parity import Outcome, Reference, Served, compare, serve
from tests.helpers.loading import load
from tests.helpers.tiny_vision import save_vision
from tests.helpers.vision_tokens import token_id
from workers.images.readers import READERS
from workers.models.loading import FusedModel, Loaded

MOST_DIFFERENCE = 1e-3
BEGIN = "<!-- The table of images is written by `python -m benchmarks.vision_parity`. -->\n"
HEAD = """
| model | transformers path | fused decoder | 2 ranks | images |
|---|---|---|---|---|
"""


class Row:
    """One line of the table."""

    def __init__(self, name: str, folder: Path) -> None:
        """Make the model in `folder` and serve it on one rank."""
        self.name, self.folder = name, save_vision(name, folder)
        self._reference = Reference(CASES[name], folder)
        self._prompts: list[Prompt] = prompts(CASES[name], self._reference.n_rows)
        (folder / "prompts").write_bytes(pickle.dumps(self._prompts))
        self.outcome = self._served("transformers")
        self.fused = self._served("auto") if isinstance(self._loaded("auto"), FusedModel) else None
        self.ranks: Outcome | None = None

    def add_ranks(self) -> None:
        """Read what two ranks served."""
        self.ranks = self._compare(pickle.loads((self.folder / "served").read_bytes()))

    def _loaded(self, implementation: str) -> Loaded:
        return load(self.folder, torch.float32, CPU, implementation)

    def _served(self, implementation: str) -> Outcome:
        model = self._loaded(implementation)
        return self._compare(serve(CASES[self.name], model, self._prompts, self.folder))

    def _compare(self, served: list[Served]) -> Outcome:
        banned = token_id(CASES[self.name].image_token)
        return compare(self._prompts, served, self._reference, banned)

    @property
    def right(self) -> bool:
        return "**" not in str(self)

    def __str__(self) -> str:
        served = self.name.partition(",")[0] in READERS
        images = "yes" if served else "not prepared yet: text only"
        outcomes = " | ".join(map(_shown, (self.outcome, self.fused, self.ranks)))
        return f"| {self.name} | {outcomes} | {images} |"


def _shown(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    text = f"{outcome.difference:.1e}"
    right = outcome.difference < MOST_DIFFERENCE and not outcome.wrong
    return text if right else f"**{text}, {outcome.wrong} tokens**"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(CASES), help="print this row")
    given = parser.parse_args()
    names = given.only or sorted(CASES)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        rows = [Row(name, Path(folder, name)) for name in names]
        command = [sys.executable, "-m", "tests.families.vision_two_ranks"]
        about = [folder, "auto", *names]
        ranks = [subprocess.Popen([*command, str(rank), *about]) for rank in range(2)]
        for rank in ranks:
            rank.wait()
        for row in rows:
            row.add_ranks()
    lines = HEAD + "".join(f"{row}\n" for row in rows)
    print(lines)
    if not given.only:
        before, _, rest = TABLE.read_text().partition(BEGIN)
        TABLE.write_text(before + BEGIN + lines + rest[rest.index("\n## ") :])
    return 0 if all(row.right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

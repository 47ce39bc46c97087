"""Write docs/models.md: every served family, compared with transformers' own code in float32.

`python -m benchmarks.parity` makes all small models of tests/families, loads each from its files on
every path that runs it, and writes the table; `--only NAME` (repeatable) prints rows instead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from tests.families.cases import CASES, Case, save
from tests.families.faults import FAULTS, NoPlace
from tests.families.parity import (
    CPU,
    LENGTHS,
    MOST_DIFFERENCE,
    NEW_TOKENS,
    Outcome,
    Reference,
    Text,
    compare,
    difference,
    generate,
)
from tests.helpers.loading import load
from workers.decoder.families import FAMILIES
from workers.errors import UnsupportedModel
from workers.models.loading import Loaded
from workers.models.transformers_path import TransformersModel

TABLE = Path(__file__).parents[1] / "docs" / "models.md"
MARK = "<!-- The rest of this file is written by `python -m benchmarks.parity`. -->\n"
HEAD = """
| model | transformers path | fused decoder | 2 ranks | planted faults |
|---|---|---|---|---|
"""


class Row:
    """One line of the table."""

    def __init__(self, name: str, folder: Path) -> None:
        """Make the model in `folder` and run it on one rank."""
        case = CASES[name]
        self.name, self.folder = name, save(case, folder)
        self._reference = Reference(folder, case.reference)
        self.ranks, self.refusal = "not run", ""
        model = _loaded(case, folder, "transformers")
        assert isinstance(model, TransformersModel)
        texts = generate(model)
        torch.save([text.tokens for text in texts], folder / "texts.pt")
        self._tokens = [text.tokens for text in texts]
        self.outcome = compare(texts, self._reference)
        self.faults = self._faults(model)
        self.fused = self._fused(case)

    def add_ranks(self) -> None:
        """Read the results of two ranks."""
        path = self.folder / "ranks.pt"
        if not path.exists():
            return
        found = torch.load(path)
        if isinstance(found, str):
            self.ranks, self.refusal = "refused", found
            return
        texts = [Text(*pair) for pair in zip(self._tokens, found, strict=True)]
        largest = difference(texts, self._reference)
        self.ranks = f"{largest:.1e}" if largest < MOST_DIFFERENCE else f"**{largest:.1e}**"

    @property
    def right(self) -> bool:
        """Whether all paths are right, and every fault was detected."""
        return "**" not in str(self)

    def __str__(self) -> str:
        path = _shown(self.outcome)
        return f"| {self.name} | {path} | {self.fused} | {self.ranks} | {self.faults} |"

    def _fused(self, case: Case) -> str:
        if case.kind not in FAMILIES:
            return ""
        try:
            model = _loaded(case, self.folder, "fused")
        except UnsupportedModel as error:
            return f"no: {str(error).split(': ')[1].split('. ')[0]}"
        return _shown(compare(generate(model), self._reference))

    def _faults(self, model: TransformersModel) -> str:
        moved = []
        for name, plant in FAULTS.items():
            try:
                with plant(model):
                    texts = generate(model, new_tokens=4)
            except NoPlace:
                continue
            times = difference(texts, self._reference) / MOST_DIFFERENCE
            shown = f"{times:,.0f}"
            moved.append(f"{name} {shown if times > 100 else f'**{shown}**'}")
        return ", ".join(moved)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(CASES), help="print this row")
    parser.add_argument("--one-rank", action="store_true", help="leave the column of ranks empty")
    given = parser.parse_args()
    names = given.only or list(CASES)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in names:
            rows.append(Row(name, Path(folder, name)))
            print(rows[-1], flush=True)
        if not given.one_rank:
            _run_ranks(Path(folder), names)
        for row in rows:
            row.add_ranks()
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row.refusal:
            reason = row.refusal.replace(CASES[row.name].kind, "it")
            refused.setdefault(reason, []).append(row.name)
    lines = HEAD + "".join(f"{row}\n" for row in rows)
    if refused:
        lines += "\nRefused on several ranks:\n\n"
        lines += "".join(f"- {reason}: {'; '.join(names)}\n" for reason, names in refused.items())
    print(lines)
    wrong = [row.name for row in rows if not row.right]
    if not given.only:
        kinds = len({CASES[name].kind for name in names})
        differences = [row.outcome.difference for row in rows]
        summary = (
            f"\n{len(rows)} models of {kinds} architectures, transformers "
            f"{transformers.__version__}, torch {torch.__version__}: the largest difference is "
            f"{max(differences):.1e}, {sum(row.outcome.near_ties for row in rows)} of "
            f"{len(rows) * len(LENGTHS) * NEW_TOKENS:,} generated tokens were near ties, and "
            f"{len(wrong)} models are wrong.\n"
        )
        text = TABLE.read_text()
        TABLE.write_text(text[: text.index(MARK)] + MARK + summary + lines)
        print(summary)
    return 1 if wrong else 0


def _loaded(case: Case, folder: Path, implementation: str) -> Loaded:
    return load(
        folder,
        torch.float32,
        CPU,
        implementation=implementation,
        max_total_tokens=case.max_total_tokens,
    )


def _right(outcome: Outcome) -> bool:
    return outcome.equal and outcome.difference < MOST_DIFFERENCE


def _shown(outcome: Outcome) -> str:
    ties = f", {outcome.near_ties} near ties" if outcome.near_ties else ""
    text = f"{outcome.difference:.1e}{ties}"
    return text if _right(outcome) else f"**{text}**"


def _run_ranks(folder: Path, names: list[str]) -> None:
    command = [sys.executable, "-m", "tests.families.two_ranks"]
    ranks = [subprocess.Popen([*command, str(rank), str(folder), *names]) for rank in range(2)]
    for rank in ranks:
        rank.wait()


if __name__ == "__main__":
    sys.exit(main())

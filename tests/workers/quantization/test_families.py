"""Every family that is held to transformers, its linear layers in fp8, on one rank and on two."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _pytest.outcomes import Skipped

from tests.families.cases import CASES, save
from tests.families.parity import MOST_DIFFERENCE, Reference, compare, generate
from tests.helpers.loading import load, pretrained
from tests.workers.models.test_weights import CPU
from tests.workers.quantization.checkpoints import quantized
from tests.workers.quantization.test_fp8 import SETTINGS, write
from workers.errors import UnsupportedModel
from workers.layers.linear import Linear

pytestmark = pytest.mark.full

KIND = "rows"
OF_EXPERTS = re.compile(r".*experts\.\d+\.\w+\.weight")
NOT_SERVED = re.compile(
    r"the experts of a \w+ are not served in fp8|is quantized in the checkpoint"
)

REFUSED = re.compile(r"spread over (several )?ranks|most ranks")


def made(name: str, folder: Path) -> tuple[Path, Path]:
    """A case in fp8, and dense; all linear layers that are ours are quantized but for the head."""
    dense = save(CASES[name], folder / "dense" / name)
    plain = pretrained(dense)
    head = plain.module.get_output_embeddings()
    sources = plain.weights.matching.sources
    keys = {
        key
        for layer, module in plain.module.named_modules()
        if isinstance(module, Linear) and module is not head
        if (source := sources.get(f"{layer}.weight")) is not None
        for _, key in source.keys
    }
    keys |= {key for key in plain.weights.matching._checkpoint.names if OF_EXPERTS.fullmatch(key)}
    if not keys:
        pytest.skip("its linear layers are transformers' own")
    layers = "|".join(re.escape(key.removesuffix(".weight")) for key in sorted(keys))
    linear = re.compile(rf"({layers})\.weight")
    return quantized(dense, folder / name, write(KIND), SETTINGS[KIND], linear=linear), dense


@pytest.mark.parametrize("name", CASES)
def test_texts_and_logits(name: str, tmp_path: Path) -> None:
    folder, dense = made(name, tmp_path)
    case = CASES[name]
    try:
        model = load(
            folder,
            torch.float32,
            CPU,
            implementation="transformers",
            max_total_tokens=case.max_total_tokens,
        )
    except UnsupportedModel as error:
        if NOT_SERVED.search(str(error)) is None:
            raise
        pytest.skip(str(error))
    outcome = compare(generate(model), Reference(dense, case.reference))
    assert outcome.difference < MOST_DIFFERENCE
    assert outcome.equal


def test_two_ranks(tmp_path: Path) -> None:
    """As far as one rank serves a family, and two serve it plain."""
    texts, names = {}, []
    for name, case in CASES.items():
        try:
            folder, _ = made(name, tmp_path)
            model = load(
                folder,
                torch.float32,
                CPU,
                implementation="transformers",
                max_total_tokens=case.max_total_tokens,
            )
        except (UnsupportedModel, Skipped):
            continue
        texts[name] = generate(model)
        torch.save([one.tokens for one in texts[name]], folder / "texts.pt")
        names.append(name)
    command = [sys.executable, "-m", "tests.families.two_ranks"]
    ranks = [subprocess.Popen([*command, str(n), str(tmp_path), *names]) for n in range(2)]
    assert [one.wait(1800) for one in ranks] == [0, 0]
    refused: dict[str, str] = {}
    differences: dict[str, float] = {}
    for name in names:
        found = torch.load(tmp_path / name / "ranks.pt")
        if isinstance(found, str):
            refused[name] = found
            continue
        pairs = zip(found, texts[name], strict=True)
        differences[name] = max(float((one - other.logits).abs().max()) for one, other in pairs)
    assert not {name: why for name, why in refused.items() if REFUSED.search(why) is None}
    assert max(differences.values()) < MOST_DIFFERENCE, differences
    assert len(differences) > 0.8 * len(names)

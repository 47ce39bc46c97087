"""Logits of models on several ranks, in processes of their own, against a single one's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.loading import pretrained
from tests.helpers.paged_sequences import PagedSequences
from tests.helpers.rank_logits import load_named
from tests.helpers.tiny_families import VARIANTS, tiny
from tests.workers.models.test_weights import saved
from workers.attention.kv_codes import CODES

CPU = torch.device("cpu")
MOST_DIFFERENCE = 2e-4
MOST_DIFFERENCE_OF_SMOLLM2 = 1e-3
MOST_DIFFERENCE_OF_CODES = 5e-3
"""A third of the least that any of these models differs by from itself without codes."""

FEW = ["fused:gemma2", "fused:llama, biases", "fused:phi3", "transformers:qwen3"]
FEW_MORE = ["transformers:mixtral", "transformers:gpt_neox"]
"""Implementation and family, of those that are not in VARIANTS too."""
OF_CODES = ["fused,fp8_e4m3fn:phi3", "transformers,int8:qwen3"]
MORE = ["gemma3_text", "glm4", "gpt_oss", "mixtral", "olmo2", "olmoe", "opt", "phimoe", "qwen2_moe"]


def model_of(folder: Path, name: str) -> Path:
    """The folder of a model, made the first time."""
    path = folder / name.replace(" ", "-")
    if path.exists():
        return path
    if name in VARIANTS:
        tiny(name).save_pretrained(path)
        return path
    return saved(path, name, hidden_size=64)


def run(models: list[tuple[str, Path]], world_size: int, folder: Path) -> list[list[torch.Tensor]]:
    """Logits of each model, as its rank 0 has them."""
    named = [f"{implementation}:{path}" for implementation, path in models]
    command = [sys.executable, "-m", "tests.helpers.rank_logits"]
    processes = [
        subprocess.Popen([*command, str(rank), str(world_size), str(folder), *named])
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(280) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{at}.pt") for at in range(len(models))]


def furthest(models: list[tuple[str, Path]], found: list[list[torch.Tensor]]) -> list[float]:
    """The largest difference of each model's logits from those of a single process; of a cache of
    codes the median one, for a sum in another order may end in another code."""
    differences = []
    for (implementation, path), logits in zip(models, found, strict=True):
        expected = PagedSequences(load_named(implementation, path)).run()
        assert [one.shape for one in logits] == [one.shape for one in expected]
        apart = torch.cat([(a - b).abs().flatten() for a, b in zip(logits, expected, strict=True)])
        differences.append(float(apart.median() if "," in implementation else apart.max()))
    return differences


def hold(names: list[str], world_size: int, folder: Path) -> None:
    pairs = [name.split(":") for name in names]
    models = [(implementation, model_of(folder, name)) for implementation, name in pairs]
    found = furthest(models, run(models, world_size, folder))
    for name, difference in zip(names, found, strict=True):
        print(f"{world_size} ranks, {name}: {difference:.1e}")
    for (implementation, _), difference in zip(pairs, found, strict=True):
        most = MOST_DIFFERENCE_OF_CODES if "," in implementation else MOST_DIFFERENCE
        assert difference < most


def test_two_ranks_of_some_families(tmp_path: Path) -> None:
    hold(FEW + FEW_MORE + OF_CODES, 2, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("implementation", ["fused", "transformers"])
def test_fused_families(tmp_path: Path, world_size: int, implementation: str) -> None:
    hold([f"{implementation}:{name}" for name in VARIANTS], world_size, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("codes", CODES)
def test_caches_of_codes(tmp_path: Path, world_size: int, codes: str) -> None:
    names = [f"{one},{codes}:{name}" for name in VARIANTS for one in ("fused", "transformers")]
    hold(names, world_size, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_other_families(tmp_path: Path, world_size: int) -> None:
    hold([f"transformers:{name}" for name in MORE], world_size, tmp_path)


@pytest.mark.full
@pytest.mark.model
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_smollm2_and_what_its_ranks_hold(
    model_folder: Path, tmp_path: Path, world_size: int
) -> None:
    models = [("transformers", model_folder), ("fused", model_folder)]
    found = furthest(models, run(models, world_size, tmp_path))
    assert max(found) < MOST_DIFFERENCE_OF_SMOLLM2

    held = [
        json.loads((tmp_path / f"bytes-{rank}.json").read_text())[f"transformers:{model_folder}"]
        for rank in range(world_size)
    ]
    matching = pretrained(model_folder).weights.matching
    whole = {name: one for name, one in matching.state.items() if name not in matching.tied}
    n_whole = sum(one.numel() for one in whole.values())
    n_norms = sum(one.numel() for name, one in whole.items() if "norm" in name)
    keys = [one for name, one in whole.items() if "k_proj" in name or "v_proj" in name]
    # Of its 3 heads of keys and values, one is with two of four ranks.
    n_shared = sum(one.numel() for one in keys) // 3 if world_size == 4 else 0
    print(f"{world_size} ranks: {[n / 1e6 for n in held]} MB of {4 * n_whole / 1e6}")
    assert sum(held) == 4 * (n_whole + (world_size - 1) * n_norms + n_shared)

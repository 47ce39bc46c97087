"""Every family that is served, loaded from its files, against transformers in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests.families.cases import CASES, REFUSED, Case, save
from tests.families.faults import FAULTS, NoPlace
from tests.families.parity import CPU, MOST_DIFFERENCE, Reference, compare, difference, generate
from tests.helpers.loading import load
from workers.errors import UnsupportedModel
from workers.models.description import read_config
from workers.models.tested_families import TESTED
from workers.models.transformers_path import TransformersModel

QUICK = (
    "bloom",
    "deepseek_v3",
    "falcon, new decoder",
    "gemma2",
    "gpt2",
    "gpt_neo",
    "gpt_oss",
    "llama4_text",
    "mpt",
    "phi3, longrope, long texts",
    "qwen3_moe",
    "stablelm",
)
"""What the quick tests run: between them every way of attending."""
LONG = [pytest.param(name, marks=pytest.mark.full) for name in CASES if name not in QUICK]


def loaded(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> TransformersModel:
    model = load(
        save(case, folder),
        dtype,
        CPU,
        implementation="transformers",
        max_total_tokens=case.max_total_tokens,
    )
    assert isinstance(model, TransformersModel)
    return model


@pytest.mark.parametrize("name", [*QUICK, *LONG])
def test_texts_and_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = loaded(CASES[name], tmp_path)
    outcome = compare(generate(model), Reference(tmp_path, CASES[name].reference))
    assert outcome.spread > 0.2  # so that the difference below says something
    assert outcome.difference < MOST_DIFFERENCE
    assert outcome.equal
    assert outcome.near_ties < 0.05 * outcome.positions


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_a_fault_in_one_place_would_be_seen(name: str, tmp_path: Path) -> None:
    model = loaded(CASES[name], tmp_path)
    reference = Reference(tmp_path, CASES[name].reference)
    for fault, plant in FAULTS.items():
        try:
            with plant(model):
                texts = generate(model, new_tokens=4)
        except NoPlace:
            continue
        assert difference(texts, reference) > 100 * MOST_DIFFERENCE, fault
    assert difference(generate(model, new_tokens=4), reference) < MOST_DIFFERENCE


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_about_as_near_as_that_of_transformers(name: str, tmp_path: Path) -> None:
    reference = CASES[name].reference
    model = loaded(CASES[name], tmp_path, torch.bfloat16)
    exact = Reference(tmp_path, reference)
    rough = Reference(tmp_path, reference, torch.bfloat16)
    ours, theirs = 0.0, 0.0
    for tokens, logits in generate(model, new_tokens=4, dtype=torch.bfloat16):
        expected = exact.logits(tokens[:-1])
        ours += float((logits.float() - expected).square().mean())
        theirs += float((rough.logits(tokens[:-1]).float() - expected).square().mean())
    # A token that goes to another expert makes much of little, on either side.
    assert ours < 5 * theirs + 1e-3


def test_a_family_that_is_not_here_says_so_at_start(tmp_path: Path) -> None:
    assert {case.kind for case in CASES.values()} == TESTED
    model = loaded(CASES["llama"], tmp_path / "a")
    assert not any("held to transformers" in note for note in model.notes)
    other = save(CASES["llama"], tmp_path / "b")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"llama"', '"iquestcoder"'))
    model = load(other, torch.float32, CPU)  # type: ignore[assignment]
    assert any("iquestcoder is not among the families that tests" in note for note in model.notes)


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_run_is_refused_by_its_config(what: str, tmp_path: Path) -> None:
    kind, settings = REFUSED[what]
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=kind):
        read_config(tmp_path, trust_remote_code=False)

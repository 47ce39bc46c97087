"""Texts with drafts of Medusa heads and MLP speculators are those without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.drive import CPU, Drive
from tests.helpers.loading import load
from tests.helpers.taught_drafts import teach_medusa, teach_mlp, texts_of
from tests.helpers.tiny_drafts import (
    medusa_config,
    medusa_tensors,
    mlp_config,
    mlp_tensors,
    save_draft_model,
)
from tests.helpers.tiny_llama import save_tiny_llama
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tests.workers.test_runner_grammar import PROMPTS
from tests.workers.test_verification import Said
from tgi_async.grammar.grammar import Grammar, Regex
from tgi_async.wire.messages import Sampling, SpeculationConfig
from workers.constraints.vocabulary import Vocabulary
from workers.draft_models.checkpoint import TargetModel
from workers.draft_models.registry import draft_source
from workers.models.loading import Loaded
from workers.speculation.source import DraftSource

SAMPLINGS = [
    Sampling(logprobs=True),
    Sampling(do_sample=True, temperature=3.0, seed=8, logprobs=True),
    Sampling(repetition_penalty=1.5, logprobs=True),
]
GRAMMARS: list[Grammar | None] = [None, Regex("(abc|[xyz]+;)+")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("model"))
    return save_tiny_llama(folder, vocabulary=size)


@pytest.fixture(
    scope="module",
    params=[
        "fused",
        pytest.param("fused, bfloat16", marks=pytest.mark.full),
        pytest.param("transformers", marks=pytest.mark.full),
    ],
)
def model(folder: Path, request: pytest.FixtureRequest) -> Loaded:
    implementation, _, dtype = request.param.partition(", ")
    return load(folder, torch.bfloat16 if dtype else torch.float32, CPU, implementation)


@pytest.fixture(scope="module")
def vocabulary(folder: Path, model: Loaded) -> Vocabulary:
    return Vocabulary(folder, model.spec.vocab_size, [END])


def run_all(drive: Drive) -> Said:
    for prompt in PROMPTS:
        for sampling in SAMPLINGS:
            for grammar in GRAMMARS:
                drive.submit(prompt, 40, grammar, sampling)
    drive.run()
    assert not drive.errors
    return Said(drive.said, drive.logprobs)


@pytest.fixture(scope="module")
def alone(model: Loaded, vocabulary: Vocabulary) -> Said:
    return run_all(Drive(model, vocabulary, rows=1))


def source_of(kind: str, model: Loaded, folder: Path, said: Said) -> DraftSource:
    """One that learnt what the model said, or that shares the model's head."""
    n_each = len(SAMPLINGS) * len(GRAMMARS)
    texts = texts_of(model, [PROMPTS[n // n_each] + text for n, text in said.texts.items()])
    size = model.spec.vocab_size
    if kind == "MLP speculator":
        config = mlp_config() | {"vocab_size": size}
        tensors = teach_mlp(config, mlp_tensors(vocabulary=size), texts)
    else:
        config = medusa_config()
        shares = kind == "Medusa v2"
        tensors = medusa_tensors(own_heads=not shares, vocabulary=size)
        if not shares:
            tensors = teach_medusa(config, tensors, texts)
    path = save_draft_model(folder, config, tensors)
    dtype = model.spec.cache_group.spec.dtype
    target = TargetModel(model.head, model.spec.hidden_size, size, dtype, CPU)
    source = draft_source(SpeculationConfig(3, "", str(path)), target)
    assert source is not None
    return source


@pytest.mark.parametrize("kind", ["Medusa v1", "Medusa v2", "MLP speculator"])
def test_texts_are_those_without(
    model: Loaded, vocabulary: Vocabulary, alone: Said, tmp_path: Path, kind: str
) -> None:
    drafts = source_of(kind, model, tmp_path / "drafts", alone)
    drive = Drive(model, vocabulary, drafts=drafts, overlap=True)
    found = run_all(drive)
    assert found.texts == alone.texts
    for number, logprobs in alone.logprobs.items():
        assert found.logprobs[number] == pytest.approx(logprobs, abs=1e-4)
    # The heads of Medusa v2 have nothing but their blocks to learn with, and did not.
    least = 0 if kind == "Medusa v2" else 100
    assert least <= drive.n_accepted < drive.n_drafts

"""Draft models change no text: core and runner together, with heads that learnt the texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.drive import ROWS, Drive
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
from tests.workers.test_runner_grammar import GRAMMARS, PROMPTS, SAMPLINGS, run_all
from tgi_async.wire.messages import SpeculationConfig
from workers.constraints.vocabulary import Vocabulary
from workers.draft_models.checkpoint import TargetModel
from workers.draft_models.registry import draft_source
from workers.models.loading import Loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("exact"))
    return save_tiny_llama(folder, vocabulary=size)


@pytest.fixture(scope="module")
def model(folder: Path) -> Loaded:
    return load(folder, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def vocabulary(folder: Path, model: Loaded) -> Vocabulary:
    return Vocabulary(folder, model.spec.vocab_size, [END])


@pytest.fixture(scope="module")
def alone(model: Loaded, vocabulary: Vocabulary) -> dict[int, list[int]]:
    return run_all(Drive(model, vocabulary, rows=1))


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("kind", ["medusa", "mlp_speculator"])
def test_texts_are_those_without_drafts(
    model: Loaded,
    vocabulary: Vocabulary,
    alone: dict[int, list[int]],
    tmp_path: Path,
    kind: str,
    rows: int,
) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in SAMPLINGS for _ in GRAMMARS]
    # More than these cannot be learnt by so few numbers.
    texts = texts_of(model, [prompts[at] + alone[at] for at in (2, 5)])
    size = model.spec.vocab_size
    if kind == "medusa":
        config = medusa_config()
        tensors = teach_medusa(config, medusa_tensors(vocabulary=size), texts)
    else:
        config = mlp_config() | {"vocab_size": size}
        tensors = teach_mlp(config, mlp_tensors(vocabulary=size), texts)
    path = save_draft_model(tmp_path / "drafts", config, tensors)
    target = TargetModel(
        model.head, model.spec.hidden_size, size, torch.float32, torch.device("cpu")
    )
    source = draft_source(SpeculationConfig(3, "", str(path)), target)

    drive = Drive(model, vocabulary, rows=rows, budget=40, drafts=source)

    assert run_all(drive) == alone
    assert 20 < drive.n_accepted < drive.n_drafts

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.loading import load
from tests.helpers.taught_drafts import teach_medusa, teach_mlp, texts_of
from tests.helpers.tiny_drafts import (
    MEDUSA_FILE,
    medusa_config,
    medusa_tensors,
    mlp_config,
    mlp_tensors,
    save_draft_model,
)
from tests.helpers.tiny_llama import save_tiny_llama
from tests.workers.draft_models.target import TARGET, hidden_states
from tgi_async.wire.messages import SpeculationConfig
from workers.draft_models.checkpoint import TargetModel
from workers.draft_models.config import NAMES
from workers.draft_models.registry import OF_MODELS, draft_source
from workers.errors import UnsupportedModel
from workers.speculation.source import DraftRows, DraftSource


@pytest.fixture
def medusa(tmp_path: Path) -> str:
    return str(save_draft_model(tmp_path / "m", medusa_config(), medusa_tensors(), MEDUSA_FILE))


@pytest.fixture
def mlp(tmp_path: Path) -> str:
    return str(save_draft_model(tmp_path / "s", mlp_config(), mlp_tensors()))


def source(max_drafts: int, method: str = "", path: str = "") -> DraftSource | None:
    return draft_source(SpeculationConfig(max_drafts, method, path), TARGET)


def test_every_kind_of_checkpoint_has_a_source() -> None:
    assert OF_MODELS.keys() == NAMES.keys()


def test_a_checkpoint_says_which_method_it_is_of(medusa: str, mlp: str) -> None:
    for path, method in ((medusa, "medusa"), (mlp, "mlp_speculator")):
        for asked in ("", method):
            found = source(2, asked, path)
            assert found is not None
            assert found.method == method
            assert found.wants_hidden
            found.admit(0, [5], 1, "")
            (proposal,) = found.propose(DraftRows([0], [9], hidden_states(1)))
            assert len(proposal.tokens) == 2  # as many heads as were asked for are loaded


def test_without_drafts_there_is_no_source(medusa: str) -> None:
    assert source(0, "", medusa) is None
    assert source(0, "medusa") is None


def test_more_drafts_than_heads_are_refused(medusa: str, mlp: str) -> None:
    with pytest.raises(
        UnsupportedModel,
        match=r"--speculate is 5, and the model is a Medusa checkpoint of 3 heads, each of which "
        r"drafts one token: give --speculate 3, or less",
    ):
        source(5, "", medusa)
    with pytest.raises(UnsupportedModel, match=r"an MLP speculator of 3 heads"):
        source(4, "mlp_speculator", mlp)
    assert source(3, "", medusa) is not None


def test_a_method_of_another_checkpoint_is_refused(medusa: str) -> None:
    with pytest.raises(
        UnsupportedModel,
        match=r"--speculation mlp_speculator needs an MLP spec.* Given was a Medusa checkpoint",
    ):
        source(2, "mlp_speculator", medusa)
    with pytest.raises(
        UnsupportedModel,
        match=r"--speculation medusa needs a Medusa checkpoint.* a model of its own",
    ):
        source(2, "medusa")


def test_a_method_that_is_not_known_is_refused(medusa: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"--speculation is one of .*medusa.* Given: eagle"):
        source(2, "eagle", medusa)


def test_a_folder_without_a_draft_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"has no config\.json of a Medusa checkpoint or"):
        source(2, "", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=rf"the draft model {tmp_path}: config\.json is not"):
        source(2, "", str(tmp_path))
    (tmp_path / "config.json").write_text('{"medusa_num_heads": 0}')
    with pytest.raises(UnsupportedModel, match=rf"the draft model {tmp_path}: its config\.json"):
        source(2, "", str(tmp_path))


def test_another_vocabulary_is_refused(mlp: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"it is the draft model of another one"):
        draft_source(SpeculationConfig(2, "", mlp), TARGET._replace(vocab_size=98))
    target = TARGET._replace(dtype=torch.bfloat16)
    assert draft_source(SpeculationConfig(2, "", mlp), target) is not None


@pytest.mark.parametrize("kind", ["medusa", "mlp_speculator"])
def test_what_learnt_a_text_foretells_it(tmp_path: Path, kind: str) -> None:
    model = load(save_tiny_llama(tmp_path), torch.float32, torch.device("cpu"))
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(model.spec.vocab_size, (40,), generator=draw).tolist()
    (text,) = texts = texts_of(model, [tokens])
    config = medusa_config() if kind == "medusa" else mlp_config()
    tensors = (
        teach_medusa(config, medusa_tensors(), texts)
        if kind == "medusa"
        else teach_mlp(config, mlp_tensors(), texts)
    )
    path = str(save_draft_model(tmp_path / "drafts", config, tensors))
    spec = model.spec
    target = TargetModel(
        model.head, spec.hidden_size, spec.vocab_size, torch.float32, torch.device("cpu")
    )
    source = draft_source(SpeculationConfig(3, "", path), target)
    assert source is not None
    places = range(len(tokens) - 4)
    for at in places:
        source.admit(at, tokens[: at + 2], 1, "")

    proposals = source.propose(DraftRows(places, [3] * len(places), text.hidden[: len(places)]))

    # What is known at a place is the token that was sampled there, and the first draft follows it.
    right = [
        one.tokens == tokens[at + 2 : at + 5] for at, one in zip(places, proposals, strict=True)
    ]
    assert sum(right) > 0.9 * len(right)

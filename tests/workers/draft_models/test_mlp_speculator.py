"""MLP speculators against the same in plain torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu

from tests.helpers.tiny_drafts import (
    HIDDEN,
    INNER,
    Tensors,
    mlp_config,
    mlp_tensors,
    save_draft_model,
)
from tests.workers.draft_models.target import TARGET, hidden_states
from workers.draft_models.checkpoint import DraftCheckpoint, TargetModel
from workers.draft_models.config import draft_model
from workers.draft_models.mlp_speculator import MlpSpeculatorSource
from workers.errors import UnsupportedModel
from workers.speculation.source import DraftRows

N_ROWS = 20
LAST = [(37 * at + 11) % 97 for at in range(N_ROWS)]


def source_of(
    folder: Path, config: dict[str, Any], tensors: Tensors, target: TargetModel = TARGET, n: int = 3
) -> MlpSpeculatorSource:
    save_draft_model(folder, config, tensors)
    model = draft_model(config)
    assert model is not None
    source = MlpSpeculatorSource(DraftCheckpoint(folder, target), model, n)
    for row, token in enumerate(LAST):
        source.admit(row, [1, 2, token], 2, "")
    return source


def normed(x: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def expected_of(config: dict[str, Any], tensors: Tensors, last: list[int]) -> list[list[int]]:
    """The drafts of rows whose last tokens are these, each from a hidden state of its own."""
    state_weight = 0.5 ** (0.5 / config["n_predict"])
    token_weight = math.sqrt((1 - state_weight**2) * config["inner_dim"] / 2)

    def part(kind: str, at: int, leaf: str = "weight") -> torch.Tensor:
        most = (1 if kind == "proj" else 0) if config["tie_weights"] else at
        return tensors[f"speculator.{kind}.{min(at, most)}.{leaf}"]

    state = hidden_states(len(last))
    if config["scale_input"]:
        state = normed(state) / math.sqrt(2.0)
    tokens = torch.tensor(last)
    found = []
    for at in range(config["n_predict"]):
        said = part("emb", at)[tokens] * token_weight
        state = (state @ part("proj", at).t()) * state_weight + said
        state = gelu(normed(state) * part("ln", at) + part("ln", at, "bias"))
        tokens = (state @ part("head", at).t()).argmax(-1)
        found.append(tokens)
    drafts: list[list[int]] = torch.stack(found, 1).tolist()
    assert len({tuple(one) for one in drafts}) > len(drafts) // 2  # they say something
    return drafts


def drafts_of(source: MlpSpeculatorSource, limit: int = 3) -> list[list[int]]:
    wanted = DraftRows(range(N_ROWS), [limit] * N_ROWS, hidden_states(N_ROWS))
    proposals = source.propose(wanted)
    assert {one.match for one in proposals} == {0}
    return [one.tokens for one in proposals]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("scaled", [False, True], ids=["as it is", "scaled input"])
def test_drafts_are_those_of_plain_torch(tmp_path: Path, tied: bool, scaled: bool) -> None:
    config, tensors = mlp_config(4, tied=tied, scaled=scaled), mlp_tensors(4, tied=tied)
    source = source_of(tmp_path, config, tensors, n=4)
    assert drafts_of(source, 4) == expected_of(config, tensors, LAST)
    if tied:
        # Whoever wrote the stages that are the same once each has them all.
        each = {
            f"speculator.{kind}.{at}.{leaf}": tensors[
                f"speculator.{kind}.{min(at, 1 if kind == 'proj' else 0)}.{leaf}"
            ].clone()
            for kind, leaf in (
                *((kind, "weight") for kind in ("emb", "proj", "head", "ln")),
                ("ln", "bias"),
            )
            for at in range(4)
        }
        again = source_of(tmp_path / "each", config, each, n=4)
        assert drafts_of(again, 4) == drafts_of(source, 4)


def test_without_an_inner_size_it_is_that_of_the_model(tmp_path: Path) -> None:
    config = mlp_config() | {"inner_dim": 0}
    torch.manual_seed(5)
    tensors = {
        name: torch.randn(*(HIDDEN if size == INNER else size for size in one.shape))
        for name, one in mlp_tensors().items()
    }
    source = source_of(tmp_path, config, tensors)
    assert drafts_of(source) == expected_of(config | {"inner_dim": HIDDEN}, tensors, LAST)


def test_weights_are_those_of_training_however_many_stages_are_used(tmp_path: Path) -> None:
    config, tensors = mlp_config(), mlp_tensors()
    expected = expected_of(config, tensors, LAST)
    source = source_of(tmp_path, config, tensors, n=2)
    assert drafts_of(source) == [one[:2] for one in expected]
    assert drafts_of(source, 1) == [one[:1] for one in expected]
    limits = [1 + at % 3 for at in range(N_ROWS)]
    proposals = source.propose(DraftRows(range(N_ROWS), limits, hidden_states(N_ROWS)))
    assert [len(one.tokens) for one in proposals] == [min(limit, 2) for limit in limits]


def test_the_last_token_of_a_row_is_the_one_observed_last(tmp_path: Path) -> None:
    config, tensors = mlp_config(), mlp_tensors()
    source = source_of(tmp_path, config, tensors)
    before = drafts_of(source)
    source.observe(0, [5, 6, LAST[3]])
    source.observe(1, [])
    source.release(2)
    source.release(2)
    source.admit(2, [4, LAST[7]], 1, "")
    last = [LAST[3], LAST[1], LAST[7], *LAST[3:]]
    found = drafts_of(source)
    assert found == expected_of(config, tensors, last)
    assert found[0] != before[0]
    assert found[2] != before[2]


def test_without_hidden_states_there_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path, mlp_config(), mlp_tensors())
    with pytest.raises(ValueError, match="an MLP speculator drafts from hidden states"):
        source.propose(DraftRows([0], [1]))
    assert source.propose(DraftRows([], [], torch.empty(0, HIDDEN))) == []


def test_stages_are_of_the_dtype_of_the_model(tmp_path: Path) -> None:
    config, tensors = mlp_config(1), mlp_tensors(1)
    target = TARGET._replace(dtype=torch.bfloat16)
    source = source_of(tmp_path, config, tensors, target, n=1)
    pairs = zip(drafts_of(source, 1), expected_of(config, tensors, LAST), strict=True)
    assert sum(one == other for one, other in pairs) >= 0.8 * N_ROWS
    held = [one.head.tensors[0] for one in (stage.words for stage in source._stages)]
    assert {one.dtype for one in held} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"speculator.emb.1.weight": None}, "it has no tensor speculator.emb.1.weight"),
        ({"speculator.ln.0.bias": None}, "it has no tensor speculator.ln.0.bias"),
        (
            {"speculator.proj.0.weight": torch.zeros(INNER, 32)},
            r"speculator.proj.0.weight has the shape \[48, 32\], and for this model it must have "
            r"\[48, 64\]",
        ),
        (
            {"speculator.head.2.weight": torch.zeros(96, INNER)},
            r"speculator.head.2.weight has the shape \[96, 48\], and .* \[97, 48\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    tensors = {name: one for name, one in (mlp_tensors() | change).items() if one is not None}
    with pytest.raises(UnsupportedModel, match=f"the draft model {tmp_path}: {said}"):
        source_of(tmp_path, mlp_config(), tensors)


def test_sizes_are_numbers(tmp_path: Path) -> None:
    config = mlp_config() | {"inner_dim": None, "emb_dim": None}
    with pytest.raises(UnsupportedModel, match=r"its inner_dim must be a number\. Given: None"):
        source_of(tmp_path, config, mlp_tensors())

"""Medusa heads of every layout against the same in plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from tests.helpers.loading import load
from tests.helpers.tiny_drafts import (
    HIDDEN,
    MEDUSA_FILE,
    Tensors,
    as_vllm_has_it,
    medusa_config,
    medusa_tensors,
    save_draft_model,
)
from tests.helpers.tiny_llama import VOCABULARY, save_tiny_llama
from tests.workers.draft_models.target import HEAD, TARGET, hidden_states
from tests.workers.test_forward import cache_of, chunk
from workers.draft_models import heads
from workers.draft_models.checkpoint import DraftCheckpoint, TargetModel
from workers.draft_models.config import draft_model
from workers.draft_models.medusa import MedusaSource
from workers.errors import UnsupportedModel
from workers.speculation.source import DraftRows, Proposal

N_ROWS = 20


def source_of(
    folder: Path, config: dict[str, Any], tensors: Tensors, target: TargetModel = TARGET, n: int = 3
) -> MedusaSource:
    save_draft_model(folder, config, tensors, MEDUSA_FILE)
    model = draft_model(config)
    assert model is not None
    return MedusaSource(DraftCheckpoint(folder, target), model, n)


def expected_of(
    tensors: Tensors, hidden: torch.Tensor, n_layers: int = 1, n_heads: int = 3
) -> list[list[int]]:
    """The drafts of each row, by Medusa's own naming."""
    found = []
    for at in range(n_heads):
        x = hidden
        for layer in range(n_layers):
            name = f"{at}.{layer}.linear"
            x = x + silu(x @ tensors[f"{name}.weight"].t() + tensors[f"{name}.bias"])
        found.append((x @ tensors.get(f"{at}.{n_layers}.weight", HEAD).t()).argmax(-1))
    drafts: list[list[int]] = torch.stack(found, 1).tolist()
    assert len({tuple(one) for one in drafts}) > len(drafts) // 2  # they say something
    assert all(len(set(one)) > 5 for one in zip(*drafts, strict=True))
    return drafts


def drafts_of(source: MedusaSource, hidden: torch.Tensor, limit: int = 3) -> list[list[int]]:
    rows = list(range(len(hidden)))
    proposals = source.propose(DraftRows(rows, [limit] * len(rows), hidden))
    assert {one.match for one in proposals} == {0}
    return [one.tokens for one in proposals]


@pytest.mark.parametrize("n_layers", [0, 1, 2])
def test_heads_of_their_own(tmp_path: Path, n_layers: int) -> None:
    tensors = medusa_tensors(n_layers=n_layers)
    if not n_layers:
        tensors["1.0.weight"] = tensors["1.0.weight"].flip(0)
    source = source_of(tmp_path, medusa_config(n_layers=n_layers), tensors)
    hidden = hidden_states(N_ROWS)
    assert drafts_of(source, hidden) == expected_of(tensors, hidden, n_layers)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_head_of_the_model(
    tmp_path: Path, n_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "AT_ONCE", 7)
    tensors = medusa_tensors(n_layers=n_layers, own_heads=False)
    source = source_of(tmp_path, medusa_config(n_layers=n_layers), tensors)
    hidden = hidden_states(N_ROWS)
    assert drafts_of(source, hidden) == expected_of(tensors, hidden, n_layers)


@pytest.mark.parametrize("prefix", ["", "medusa_heads."])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_names_of_vllm(tmp_path: Path, n_layers: int, prefix: str) -> None:
    tensors = medusa_tensors(n_layers=n_layers)
    config = {"model_type": "medusa", "num_heads": 3, "num_hidden_layers": n_layers}
    named = as_vllm_has_it(tensors, n_layers, prefix)
    source = source_of(tmp_path, config, named)
    hidden = hidden_states(N_ROWS)
    assert drafts_of(source, hidden) == expected_of(tensors, hidden, n_layers)


def test_one_head_for_all_of_vllm_and_no_biases(tmp_path: Path) -> None:
    tensors = medusa_tensors()
    for at in range(3):
        tensors[f"{at}.1.weight"] = tensors["0.1.weight"]
        tensors[f"{at}.0.linear.bias"] = torch.zeros(HIDDEN)
    named = as_vllm_has_it(tensors)
    kept = {
        name: one
        for name, one in named.items()
        if "bias" not in name and name not in ("lm_heads.1.weight", "lm_heads.2.weight")
    }
    config = {"model_type": "medusa", "num_heads": 3, "original_lm_head": True}
    source = source_of(tmp_path, config, kept)
    hidden = hidden_states(N_ROWS)
    assert drafts_of(source, hidden) == expected_of(tensors, hidden)


@pytest.mark.parametrize("whole", [True, False], ids=["whole matrices", "cut matrices"])
def test_a_vocabulary_of_few_tokens(tmp_path: Path, whole: bool) -> None:
    tensors = medusa_tensors()
    few = torch.tensor([90, 3, 41, 17, 60, 8, 77, 12])
    named = as_vllm_has_it(tensors)
    if not whole:
        named |= {name: one[few] for name, one in named.items() if "lm_heads" in name}
    config = {"model_type": "medusa", "num_heads": 3, "truncated_vocab_size": len(few)}
    source = source_of(tmp_path, config, named | {"token_map": few})
    hidden = hidden_states(N_ROWS)
    for at in range(3):
        others = torch.ones(VOCABULARY, dtype=torch.bool)
        others[few] = False
        # So low that none of them is ever the likeliest.
        tensors[f"{at}.1.weight"][others] = 0.0
        biased = torch.zeros(VOCABULARY)
        biased[others] = -1e9
        x = hidden + silu(
            hidden @ tensors[f"{at}.0.linear.weight"].t() + tensors[f"{at}.0.linear.bias"]
        )
        expected = (x @ tensors[f"{at}.1.weight"].t() + biased).argmax(-1)
        assert [one[at] for one in drafts_of(source, hidden)] == expected.tolist()


def test_each_row_has_its_own_limit_and_heads_bound_it(tmp_path: Path) -> None:
    tensors = medusa_tensors()
    source = source_of(tmp_path, medusa_config(), tensors, n=2)
    hidden = hidden_states(N_ROWS)
    expected = expected_of(tensors, hidden)
    limits = [1 + at % 4 for at in range(N_ROWS)]
    proposals = source.propose(DraftRows(range(N_ROWS), limits, hidden))
    assert [one.tokens for one in proposals] == [
        one[: min(limit, 2)] for one, limit in zip(expected, limits, strict=True)
    ]
    assert drafts_of(source, hidden, limit=1) == [one[:1] for one in expected]


def test_no_rows_have_no_drafts(tmp_path: Path) -> None:
    source = source_of(tmp_path, medusa_config(), medusa_tensors())
    assert source.propose(DraftRows([], [], torch.empty(0, HIDDEN))) == []


def test_rows_come_and_go(tmp_path: Path) -> None:
    source = source_of(tmp_path, medusa_config(), medusa_tensors())
    source.admit(3, [1, 2], 1, "someone")
    source.observe(3, [4])
    source.release(3)
    source.release(3)
    hidden = hidden_states(1)
    expected = [Proposal(expected_one) for expected_one in drafts_of(source, hidden)]
    assert source.propose(DraftRows([3], [3], hidden)) == expected


def test_without_hidden_states_there_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path, medusa_config(), medusa_tensors())
    with pytest.raises(ValueError, match="Medusa drafts from hidden states"):
        source.propose(DraftRows([0], [1]))


def test_heads_are_of_the_dtype_of_the_model(tmp_path: Path) -> None:
    tensors = medusa_tensors()
    target = TARGET._replace(dtype=torch.bfloat16)
    source = source_of(tmp_path, medusa_config(), tensors, target)
    hidden = hidden_states(200).bfloat16()
    expected = expected_of(tensors, hidden.float())
    pairs = zip(drafts_of(source, hidden), expected, strict=True)
    same = [a == b for one, other in pairs for a, b in zip(one, other, strict=True)]
    assert 0.9 < sum(same) / len(same) < 1.0  # their scores are rounded


@pytest.mark.parametrize("implementation", ["fused", "transformers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_loaded_lends_its_head(
    tmp_path: Path, implementation: str, dtype: torch.dtype
) -> None:
    model = load(save_tiny_llama(tmp_path), dtype, torch.device("cpu"), implementation)
    target = TargetModel(
        model.head, model.spec.hidden_size, model.spec.vocab_size, dtype, torch.device("cpu")
    )
    tensors = medusa_tensors(own_heads=False)
    source = source_of(tmp_path / "medusa", medusa_config(), tensors, target)
    with torch.inference_mode():
        batch = replace(chunk(cache_of(model), 0, 20, list(range(20))), hidden=True)
        hidden = model.forward(batch).hidden_states
    assert hidden is not None
    from transformers import LlamaForCausalLM

    weight = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).lm_head.weight
    whole = tensors | {f"{at}.1.weight": weight.detach() for at in range(3)}
    expected = expected_of(whole, hidden.float())
    found = drafts_of(source, hidden)
    same = [a == b for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(same) / len(same) > (0.9 if dtype is torch.bfloat16 else 0.999)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"2.0.linear.weight": None}, "it has no tensor 2.0.linear.weight, which its config.json"),
        ({"1.1.weight": None}, "it has no tensor 1.1.weight"),
        (
            {"0.0.linear.weight": torch.zeros(32, 32)},
            r"0.0.linear.weight has the shape \[32, 32\], and for this model it must have "
            r"\[64, 64\]: it is the draft model of another one",
        ),
        ({"0.0.linear.bias": torch.zeros(63)}, r"0.0.linear.bias has the shape \[63\]"),
        (
            {"1.1.weight": torch.zeros(98, HIDDEN)},
            "1.1.weight is over 98 tokens, and this model has 97: it is the draft model of another",
        ),
        ({"1.1.weight": torch.zeros(97, 32)}, r"1.1.weight has the shape \[97, 32\]"),
        (
            {"0.1.weight": torch.zeros(97, HIDDEN, dtype=torch.int8)},
            r"0.1.weight is of torch.int8; draft models are served in floats",
        ),
        (
            {"token_map": torch.tensor([5, 97])},
            "token_map must be a list of token ids from 0 to 96",
        ),
        ({"token_map": torch.zeros(2, 2)}, "token_map must be a list of token ids"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    tensors = {name: one for name, one in (medusa_tensors() | change).items() if one is not None}
    with pytest.raises(UnsupportedModel, match=f"the draft model {tmp_path}: {said}"):
        source_of(tmp_path, medusa_config(), tensors)


def test_layers_are_a_number(tmp_path: Path) -> None:
    config = medusa_config() | {"medusa_num_layers": "1"}
    with pytest.raises(UnsupportedModel, match=r"its heads must be a number\. Given: '1'"):
        source_of(tmp_path, config, medusa_tensors())

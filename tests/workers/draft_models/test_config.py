from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.tiny_drafts import medusa_config, mlp_config
from workers.draft_models.config import draft_model


def test_what_configs_of_draft_models_say() -> None:
    of_medusa = draft_model(medusa_config(4, base="org/base"))
    assert of_medusa is not None
    assert of_medusa[:3] == ("medusa", 4, "org/base")
    assert of_medusa.name == "a Medusa checkpoint"
    of_vllm = draft_model({"model_type": "medusa", "num_heads": 5, "hidden_size": 64})
    assert of_vllm is not None
    assert of_vllm[:3] == ("medusa", 5, "")
    of_ibm = draft_model(mlp_config(3, base="../base"))
    assert of_ibm is not None
    assert of_ibm[:3] == ("mlp_speculator", 3, "../base")
    assert of_ibm.name == "an MLP speculator"


def test_architectures_hide_no_heads() -> None:
    config = medusa_config() | {"architectures": ["MedusaModel"], "model_type": "llama"}
    found = draft_model(config)
    assert found is not None
    assert found.method == "medusa"


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "llama", "num_heads": 3, "base_model_name_or_path": "a/b"}]
)
def test_other_models_are_none(config: dict[str, Any]) -> None:
    assert draft_model(config) is None


@pytest.mark.parametrize("n", [0, 65, -1, 2.0, "3", None])
def test_a_number_of_heads_that_cannot_be_is_refused(n: object) -> None:
    with pytest.raises(ValueError, match=r"Medusa checkpoint, whose medusa_num_heads must be a"):
        draft_model(medusa_config() | {"medusa_num_heads": n})
    with pytest.raises(ValueError, match=rf"from 1 to 64\. Given: {n!r}"):
        draft_model(mlp_config() | {"n_predict": n})


def test_a_base_is_a_text() -> None:
    with pytest.raises(ValueError, match=r"as base_model_name_or_path\. Given: \['a'\]"):
        draft_model(medusa_config() | {"base_model_name_or_path": ["a"]})

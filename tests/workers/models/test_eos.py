from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig

from tests.helpers.tiny_tokenizer import tiny_marks
from workers.models.eos import eos_token_ids

VOCABULARY = 300
FIRST = tiny_marks().get_vocab_size() - 3
"""The id of `<s>`; `</s>` and `<end>` follow."""


def ends(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    model: Any = None,
) -> list[int]:
    """What ends texts of a folder with these files; `config` is beside a vocabulary of 300."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    for name, content in (("generation_config", generation), ("tokenizer_config", tokenizer)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    tiny_marks().save(str(folder / "tokenizer.json"))
    fields: dict[str, Any] = {"vocab_size": VOCABULARY}
    fields |= {name: value for name, value in (config or {}).items() if type(value) is int}
    return eos_token_ids(folder, model or LlamaConfig(**fields))


def test_all_files_together_name_the_ends(tmp_path: Path) -> None:
    found = ends(
        tmp_path,
        config={"eos_token_id": 0},
        generation={"eos_token_id": [5, 7, 0]},
        tokenizer={"eos_token": "</s>"},
    )
    assert found == [5, 7, 0, FIRST + 1]


def test_a_placeholder_in_the_config_does_not_hide_the_tokenizers_end(tmp_path: Path) -> None:
    assert ends(tmp_path, config={"eos_token_id": 0}, tokenizer={"eos_token": "<end>"}) == [
        0,
        FIRST + 2,
    ]


def test_what_a_config_class_has_by_default_counts_where_no_file_says_anything(
    tmp_path: Path,
) -> None:
    assert ends(tmp_path) == [2]
    assert ends(tmp_path, generation={"eos_token_id": 9}) == [9]
    assert ends(tmp_path, generation={}, tokenizer={"eos_token": "</s>"}) == [FIRST + 1]


@pytest.mark.parametrize("given", [None, -1, [], [-1], "2", [None, "2"], True, 2.0, 10**30, 300])
def test_what_is_no_token_of_the_model_ends_nothing(tmp_path: Path, given: Any) -> None:
    assert ends(tmp_path, generation={"eos_token_id": given}, config={"eos_token_id": 6}) == [6]
    assert ends(tmp_path, generation={"eos_token_id": 6}, config={"eos_token_id": given}) == [6]


def test_a_config_within_the_config_is_read(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "eos_token_id": 4, "text_config": {"eos_token_id": [3, 106]}}
    model = Gemma3TextConfig(vocab_size=VOCABULARY)
    assert ends(tmp_path, config=config, model=model) == [4, 3, 106]


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"eos_token": "</s>"},
        {"eos_token": {"content": "</s>", "lstrip": False}},
        {"eos_token": "</s>", "bos_token": "</s>", "pad_token": "</s>"},
    ],
)
def test_the_tokenizer_may_have_its_end_in_several_forms(tmp_path: Path, tokenizer: Any) -> None:
    assert ends(tmp_path, config={"eos_token_id": 3}, tokenizer=tokenizer) == [3, FIRST + 1]


@pytest.mark.parametrize("tokenizer", [{}, {"eos_token": None}, {"eos_token": "<|nowhere|>"}])
def test_an_end_that_the_tokenizer_does_not_have_is_none(tmp_path: Path, tokenizer: Any) -> None:
    assert ends(tmp_path, config={"eos_token_id": 3}, tokenizer=tokenizer) == [3]


def test_an_end_of_the_tokenizer_beyond_the_model_is_none(tmp_path: Path) -> None:
    found = ends(
        tmp_path,
        config={"eos_token_id": 3, "vocab_size": FIRST + 1},
        tokenizer={"eos_token": "</s>"},
    )
    assert found == [3]


def test_the_map_of_special_tokens_names_an_end_too(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<end>"}))
    assert ends(tmp_path, config={"eos_token_id": 3}) == [3, FIRST + 2]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is not valid JSON"):
        ends(tmp_path)

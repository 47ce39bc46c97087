"""Tokens and settings out of a model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workers.images.model_files import ModelFiles, UnsupportedImages


def files(folder: Path, **contents: Any) -> ModelFiles:
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return ModelFiles(folder)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"7": {"content": "<image>"}}}},
        {"tokenizer": {"added_tokens": [{"id": 7, "content": "<image>"}]}},
    ],
    ids=["config", "tokenizer"],
)
def test_tokens_are_found_in_either_file(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    found = files(tmp_path, **tokenizer)
    assert found.token_id("<image>") == 7
    with pytest.raises(UnsupportedImages, match=r"has no token <img>, which stands for an image"):
        found.token_id("<img>")


@pytest.mark.parametrize(
    "contents",
    [
        {"processor_config": {"image_token": "<img>"}},
        {"tokenizer_config": {"image_token": "<img>"}},
        {"tokenizer_config": {"image_token": {"content": "<img>", "special": True}}},
        {"tokenizer_config": {"extra_special_tokens": {"image_token": "<img>"}}},
    ],
)
def test_a_special_token_may_have_its_name_in_several_places(
    tmp_path: Path, contents: dict[str, Any]
) -> None:
    assert files(tmp_path, **contents).named_token("image_token", "<image>") == "<img>"


def test_files_may_be_missing(tmp_path: Path) -> None:
    found = files(tmp_path, tokenizer_config={"extra_special_tokens": ["<a>"], "bos_token": None})
    assert found.kind == ""
    assert found.named_token("bos_token", "<s>") == "<s>"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedImages, match=r"config\.json cannot be read"):
        ModelFiles(tmp_path)

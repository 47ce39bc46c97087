from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tgi_async.text.sampling_defaults import SamplingDefaults


def read(folder: Path, content: Any) -> SamplingDefaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return SamplingDefaults.from_folder(folder)


def test_what_the_makers_recommend_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20})

    assert found == SamplingDefaults(0.6, 0.95, 20)


def test_a_model_that_is_not_to_be_sampled_is_greedy(tmp_path: Path) -> None:
    found = read(tmp_path, {"do_sample": False, "temperature": 0.6})

    assert found == SamplingDefaults(temperature=0.0)


@pytest.mark.parametrize("value", [0, -1, "warm", None, True, 1e9, [0.5]])
def test_values_that_cannot_be_used_are_left_out(tmp_path: Path, value: Any) -> None:
    found = read(tmp_path, {"temperature": value, "top_p": 0.9})

    assert found == SamplingDefaults(top_p=0.9)


def test_top_p_of_one_and_top_k_of_zero_mean_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, {"top_p": 1.0, "top_k": 0}) == SamplingDefaults()


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_broken_file_recommends_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)

    assert SamplingDefaults.from_folder(tmp_path) == SamplingDefaults()


def test_no_file_recommends_nothing(tmp_path: Path) -> None:
    assert SamplingDefaults.from_folder(tmp_path) == SamplingDefaults()

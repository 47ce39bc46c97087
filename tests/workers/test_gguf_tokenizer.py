from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.tiny_gguf import TEMPLATE, TOKENS, write_tiny_gguf
from workers.models.errors import ModelUnavailable
from workers.models.gguf import GgufModel
from workers.models.gguf_tokenizer import build_tokenizer, tokenizer_config


@pytest.fixture
def model(tmp_path: Path) -> GgufModel:
    return GgufModel(write_tiny_gguf(tmp_path / "a.gguf").path)


@pytest.mark.parametrize(
    "text", ["hello world", "  a\n\tb  ", "안녕하세요 🙂", "1234", "'s 've", ""]
)
def test_text_comes_back_as_it_went_in(model: GgufModel, text: str) -> None:
    tokenizer = build_tokenizer(model)

    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_merges_are_applied(model: GgufModel) -> None:
    assert build_tokenizer(model).encode("hello wll").tokens == ["hello", "Ġw", "ll"]


def test_each_digit_is_a_token(model: GgufModel) -> None:
    assert build_tokenizer(model).encode("2024").tokens == ["2", "0", "2", "4"]


def test_tokens_keep_the_ids_of_the_file(model: GgufModel) -> None:
    vocabulary = build_tokenizer(model).get_vocab()

    assert vocabulary == {token: id_ for id_, token in enumerate(TOKENS)}


def test_control_tokens_are_special(model: GgufModel) -> None:
    tokenizer = build_tokenizer(model)

    ids = tokenizer.encode("<|im_start|>hello<|im_end|>").ids

    assert ids == [1, TOKENS.index("hello"), 2]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hello<|im_end|>"


def test_the_config_names_special_tokens_and_the_chat_template(model: GgufModel) -> None:
    config = tokenizer_config(model)

    assert config["bos_token"] == "<|im_start|>"
    assert config["eos_token"] == config["pad_token"] == "<|im_end|>"
    assert config["chat_template"] == TEMPLATE
    assert "unk_token" not in config


def test_another_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    model = GgufModel(write_tiny_gguf(tmp_path / "a.gguf", pre="llama-bpe").path)

    with pytest.raises(ModelUnavailable, match="pre-tokenizer is 'llama-bpe'; read are 'smollm'"):
        build_tokenizer(model)


def test_a_tokenizer_that_adds_a_token_to_every_prompt_is_refused(tmp_path: Path) -> None:
    model = GgufModel(write_tiny_gguf(tmp_path / "a.gguf", add_bos_token=True).path)

    with pytest.raises(ModelUnavailable, match="adds a token to every prompt"):
        build_tokenizer(model)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from tests.api.tiny_tokenizer import tiny_inner, tiny_tokenizer
from tgi_async.errors import StartError, ValidationError
from tgi_async.text.tokenizer import Span, Tokenizer, special_tokens_of


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose tokenizer truncates, pads and adds a first token."""
    inner = tiny_inner()
    inner.enable_truncation(4)
    inner.enable_padding(length=16)
    start = inner.token_to_id("<|im_start|>")
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|im_start|>", "lstrip": False}, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("text", ["", "plain", "한국어 🙂 é", "a\x00b", "\ufeff \t\n"])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_spans_are_in_characters(tokenizer: Tokenizer) -> None:
    [first, *rest] = tokenizer.spans("aé")
    assert first == Span(tokenizer.encode("a")[0], 0, 1)
    assert [(span.start, span.stop) for span in rest] == [(1, 2), (1, 2)]


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValidationError, match="not valid Unicode at character 2"):
        tokenizer.encode("ab\ud800")


def test_special_tokens_are_known_by_id(tokenizer: Tokenizer) -> None:
    [end] = tokenizer.encode("<|im_end|>")
    assert tokenizer.is_special(end)
    assert end in tokenizer.special_ids
    assert tokenizer.token_text(end) == "<|im_end|>"
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special_tokens=False) == "<|im_end|>"


def test_special_tokens_are_found_by_name(tokenizer: Tokenizer) -> None:
    [end] = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert tokenizer.special_id("<|im_end|>") == end
    assert tokenizer.special_id("a") is None


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        (" \n<|im_end|><|im_start|>", "<|im_end|>"),
        ("\n", None),
        (" [/INST]<|im_end|>", None),
        ("<|im_end", None),
        ("é<|im_end|>", None),
        ("", None),
        ("\ud800", None),
    ],
)
def test_a_mark_at_the_start_of_a_text_is_the_first_thing_but_white_space(
    tokenizer: Tokenizer, text: str, mark: str | None
) -> None:
    expected = None if mark is None else tokenizer.special_id(mark)
    assert tokenizer.mark_at_start(text) == expected


def test_an_ordinary_token_is_not_special(tokenizer: Tokenizer) -> None:
    [letter] = tokenizer.encode("a")
    assert not tokenizer.is_special(letter)
    assert tokenizer.token_text(letter) == "a"


def test_an_unknown_id_has_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_text(tokenizer.vocab_size + 5) == ""


def test_a_folder_gives_the_tokenizer_and_the_names(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_truncation_and_padding_of_training_are_off(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert len(tokenizer.encode("a" * 20, add_special_tokens=False)) == 20
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_special_tokens_are_added_where_asked(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    [first, letter] = tokenizer.encode("a")
    assert tokenizer.is_special(first)
    assert tokenizer.encode("a", add_special_tokens=False) == [letter]


def test_an_added_token_has_an_empty_span(folder: Path) -> None:
    [first, letter] = Tokenizer.from_folder(folder).spans("a")
    assert (first.start, first.stop) == (0, 0)
    assert (letter.start, letter.stop) == (0, 1)


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no tokenizer\.json.*download-weights"):
        Tokenizer.from_folder(tmp_path)


def test_a_broken_tokenizer_is_an_error_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_configuration_is_an_error_of_the_start(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(StartError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(folder)


def test_a_folder_without_a_configuration_has_no_names(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(folder).eos_token is None


def test_special_tokens_may_be_texts_fields_or_null() -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": None}
    assert special_tokens_of(config) == {"bos_token": "<s>", "eos_token": "</s>"}

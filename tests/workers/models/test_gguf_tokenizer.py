from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)

from tests.helpers.tiny_gguf import TEMPLATE, TOKENS, write_tiny_gguf
from workers.errors import ModelUnavailable
from workers.models.gguf import GgufModel
from workers.models.gguf_pre_tokenizers import SPLITTINGS
from workers.models.gguf_tokenizer import build_tokenizer, end_token_ids, tokenizer_config

TEXTS = [
    "I'm sure THEY'LL see 12345 things, won't he?",
    "  two\n\n  lines\r\n\tand/or\n/paths //",
    "na\u00efve \u00c9cole \uac00\ub098\ub2e4 \u4f60\u597d \U0001f642 HTTPServer2Go",
]


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
    model = GgufModel(write_tiny_gguf(tmp_path / "a.gguf", pre="viking").path)

    with pytest.raises(ModelUnavailable, match="pre-tokenizer is 'viking'; read are 'gpt-2', 's"):
        build_tokenizer(model)


@pytest.mark.parametrize(
    ("pre", "asked", "begins"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_text_begins_with_a_token_where_llama_cpp_would_have_it(
    tmp_path: Path, pre: str, asked: bool | None, begins: bool
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", pre=pre, add_bos_token=asked).path
    tokenizer = build_tokenizer(GgufModel(path))

    hello = TOKENS.index("hello")
    assert tokenizer.encode("hello").ids == ([1, hello] if begins else [hello])
    assert tokenizer.encode("hello", add_special_tokens=False).ids == [hello]


@pytest.mark.parametrize("pre", sorted(SPLITTINGS.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()))
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_cut_as_transformers_cuts_it(pre: str, text: str) -> None:
    ours = SPLITTINGS[pre].pre_tokenizer().pre_tokenize_str(text)

    pieces = Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), "isolated").pre_tokenize_str(text)
    assert [span for _, span in ours] == [span for _, span in pieces]


PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xEA>", "<0xB0>", "<0x80>", "  "]
PIECE_TYPES = [2, 3, 3, 6, 6, 6, 6, 4]
WORDS = [*"\u2581helowrd", "he", "ll", "\u2581he", "\u2581w", "hell", "\u2581hello", "or"]


def sentencepiece(path: Path, architecture: str = "llama", prefix: bool | None = None) -> GgufModel:
    """The model of a file whose tokenizer is SentencePiece's; later words have lower scores."""
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*PIECES, *WORDS])
    writer.add_token_types([*PIECE_TYPES, *[1] * len(WORDS)])
    writer.add_token_scores([0.0] * len(PIECES) + [-float(i) for i in range(len(WORDS))])
    for add, id_ in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1)):
        add(id_)
    writer.add_eos_token_id(2)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufModel(path)


def test_sentencepiece_joins_the_best_pair_first(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(sentencepiece(tmp_path / "a.gguf"))

    assert tokenizer.encode("hello world").tokens == [
        *("<s>", "\u2581he", "ll", "o"),
        *("\u2581w", "or", "l", "d"),
    ]


@pytest.mark.parametrize("text", ["hello world", "  hello", "hello\nworld", "\uac00", "<s>"])
def test_sentencepiece_gives_back_the_text(tmp_path: Path, text: str) -> None:
    tokenizer = build_tokenizer(sentencepiece(tmp_path / "a.gguf"))

    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert 0 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_sentencepiece_begins_with_a_space_unless_it_says_otherwise(tmp_path: Path) -> None:
    with_prefix = build_tokenizer(sentencepiece(tmp_path / "a.gguf"))
    without = build_tokenizer(sentencepiece(tmp_path / "b.gguf", prefix=False))

    assert with_prefix.encode("or").tokens == ["<s>", "\u2581", "or"]
    assert without.encode("or").tokens == ["<s>", "or"]
    assert without.decode(without.encode(" or").ids) == " or"


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sentencepiece_is_what_transformers_makes_of_it(tmp_path: Path, architecture: str) -> None:
    ours = build_tokenizer(
        sentencepiece(tmp_path / "a.gguf", architecture, architecture == "llama")
    )
    named, tokenizer, _ = get_gguf_tokenizer(str(tmp_path / "a.gguf"))
    theirs, _ = convert_gguf_tokenizer(named, tokenizer)

    for text in ("hello world", "hell he  low", "wo rld\nhello", "\uac00 or"):
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, text


def test_another_kind_of_tokenizer_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sentencepiece(tmp_path / "a.gguf")
    monkeypatch.setattr(model, "get", {"tokenizer.ggml.model": "t5"}.get)

    with pytest.raises(ModelUnavailable, match="its tokenizer is 't5'; read are byte-level BPE"):
        build_tokenizer(model)


def test_generation_ends_after_a_turn_too(tmp_path: Path) -> None:
    model = GgufModel(write_tiny_gguf(tmp_path / "a.gguf", eos=0).path)

    assert end_token_ids(model) == [0, TOKENS.index("<|im_end|>")]

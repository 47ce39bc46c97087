"""Token ids put together from segments are those of the whole text."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import event, given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from tgi_async.text.segments import Segments

MARKS = ("<a>", "<a><b>", "<b>", "x<a", "<a>b", " <a>", "<a> ", "[x]", "_c_", "aa", "<", "<a", "é<")
"""Some are the beginning, the end or the middle of others, or of one and the white space by it."""
PIECES = (*MARKS, " ", "  ", "\n", "a", "b", "x", "ab ab", "é", "e\u0301", "▁", "ABC", "12", "🙂")
CORPUS = [
    "ab ab aba x abx",
    "éa e\u0301b 12 ABC abab",
    "\n  a b a b ▁ x <a> [x] _c_ >",
    "é🙂 12ab",
] * 8


def _trained(
    model: models.Model,
    trainer: trainers.Trainer,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None,
    normalizer: normalizers.Normalizer | None = None,
) -> str:
    inner = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        inner.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.train_from_iterator(CORPUS, trainer)
    made: str = inner.to_str()
    return made


def _bpe(**options: Any) -> trainers.Trainer:
    return trainers.BpeTrainer(vocab_size=400, show_progress=False, **options)


def _unigram() -> trainers.Trainer:
    return trainers.UnigramTrainer(vocab_size=60, show_progress=False, unk_token="<unk>")


KINDS = {
    "GPT-2": _trained(
        models.BPE(),
        _bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
    ),
    "GPT-4": _trained(
        models.BPE(ignore_merges=True),
        _bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\s+(?!\S)|\s+|\p{L}+|\p{N}{1,3}|."), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        normalizers.NFC(),
    ),
    "Llama 2": _trained(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        _bpe(special_tokens=["<unk>"]),
        None,
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "Mistral": _trained(
        models.BPE(unk_token="<unk>", fuse_unk=True),
        _bpe(special_tokens=["<unk>"]),
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    ),
    "T5": _trained(
        models.Unigram(),
        _unigram(),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=True, right=True)]),
    ),
    "BERT": _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=200, show_progress=False, special_tokens=["[UNK]"]),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
    ),
}
"""Tokenizers that are unlike each other in what a piece of text becomes, by who has such a one."""

texts = st.lists(st.sampled_from(PIECES), min_size=6, max_size=24).map("".join)
seldom = st.sampled_from([False] * 7 + [True])
marks = st.lists(
    st.builds(
        AddedToken,
        st.sampled_from(MARKS),
        single_word=seldom,
        lstrip=seldom,
        rstrip=seldom,
        normalized=seldom,
        special=seldom.map(lambda plain: not plain),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda token: token.content,
)


@pytest.mark.parametrize("kind", KINDS)
@given(
    marks=marks,
    conversation=st.lists(texts, min_size=1, max_size=4),
    least=st.integers(1, 6),
    most_bytes=st.sampled_from([0, 400, 1 << 20]),
)
def test_ids_are_those_of_the_whole_text(
    kind: str, marks: list[AddedToken], conversation: list[str], least: int, most_bytes: int
) -> None:
    inner = tokenizers.Tokenizer.from_str(KINDS[kind])
    inner.add_tokens(marks)
    segments = Segments(inner, least_characters=least, most_bytes=most_bytes)
    text = ""
    for turn in conversation:
        text += turn
        assert segments.encode(text) == inner.encode(text, add_special_tokens=False).ids
        event(f"cut: {len(list(segments._segments(text))) > 1}")

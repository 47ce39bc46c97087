"""Streamed text is the text, however it is cut into tokens."""

from __future__ import annotations

import random

import pytest
import tokenizers
from hypothesis import event, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tgi_async.text.stream import MOST_TOKENS, Detokenizer, TextStream
from tgi_async.text.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"
ALPHABET = "abE ND\n한국어경제é€🙂👨‍👩‍👧"


def _byte_level(n_merges: int) -> Tokenizer:
    """A byte-level BPE tokenizer that merges whatever stands side by side in some random text.

    So its tokens begin and end in the middle of characters, more often than those of trained ones.
    """
    draw = random.Random(1)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [
        list(split.pre_tokenize_str("".join(draw.choices(letters, k=40)))[0][0])
        for letters in [ALPHABET, "한🙂"] * 30
    ]
    vocabulary = {letter: id for id, letter in enumerate(sorted(split.alphabet()))}
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        word = draw.choice([word for word in words if len(word) > 1])
        at = draw.randrange(len(word) - 1)
        pair = (word[at], word[at + 1])
        word[at : at + 2] = ["".join(pair)]
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = split
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>"])
    return Tokenizer(inner)


TOKENIZERS = {n_merges: _byte_level(n_merges) for n_merges in (0, 400)}

some_tokenizer = st.sampled_from(list(TOKENIZERS.values()))
texts = st.text(alphabet=ALPHABET, max_size=60) | st.text(alphabet="한🙂", max_size=60)
bytes_and_tokens = st.lists(st.integers(0, 10_000), max_size=120)


class Counting:
    """A tokenizer that remembers the most tokens it decoded at once."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner
        self.most = 0
        self.is_special = inner.is_special

    def decode(self, ids: list[int]) -> str:
        self.most = max(self.most, len(ids))
        return self.inner.decode(ids)


def _pieces(decoder: Counting | Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decoder, prompt)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def test_the_merged_tokenizer_has_tokens_across_characters() -> None:
    tokenizer = TOKENIZERS[400]
    halves = [id for id in range(tokenizer.vocab_size) if INCOMPLETE in tokenizer.decode([id])]
    assert sum(len(tokenizer.decode([id])) > 1 for id in halves) > 20


@given(tokenizer=some_tokenizer, prompt=texts, text=texts)
def test_pieces_of_valid_text_are_whole_characters_of_it(
    tokenizer: Tokenizer, prompt: str, text: str
) -> None:
    pieces = _pieces(tokenizer, tokenizer.encode(prompt), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert INCOMPLETE not in text
    assert pieces[-1] == ""


@given(tokenizer=some_tokenizer, prompt=texts, numbers=bytes_and_tokens)
def test_pieces_of_any_tokens_are_their_decoding(
    tokenizer: Tokenizer, prompt: str, numbers: list[int]
) -> None:
    ids = [number % tokenizer.vocab_size for number in numbers]
    event("longer than the window", str(len(ids) > MOST_TOKENS))
    decoder = Counting(tokenizer)
    pieces = _pieces(decoder, tokenizer.encode(prompt), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert decoder.most <= MOST_TOKENS + 4


@given(tokenizer=some_tokenizer, numbers=st.lists(st.integers(0, 5), min_size=5, max_size=120))
def test_pieces_of_mostly_garbage_are_its_decoding(
    tokenizer: Tokenizer, numbers: list[int]
) -> None:
    # The letters that stand for the bytes F0, E2, FF, 9F and 98.
    vocabulary = tokenizer.inner.get_vocab()
    letters = [vocabulary[letter] for letter in ("a", "ð", "â", "ÿ", "Ł", "ĺ")]
    ids = [letters[number] for number in numbers]
    decoder = Counting(tokenizer)
    assert "".join(_pieces(decoder, [], ids)) == tokenizer.decode(ids)
    assert decoder.most <= MOST_TOKENS + 4


@pytest.mark.parametrize("include", [True, False])
@given(
    tokenizer=some_tokenizer,
    text=st.text(alphabet="abE한", max_size=40),
    stop=st.lists(st.text(alphabet="abE한", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_sequences_are_found_as_in_the_whole_text(
    include: bool, tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    stream = TextStream(tokenizer, [], tuple(stop), include)
    pieces, stopped = [], False
    for id in tokenizer.encode(text):
        piece, stopped = stream.push(id)
        pieces.append(piece)
        if stopped:
            break
    if not stopped:
        pieces.append(stream.flush())

    end, start = min(
        ((text.find(one) + len(one), text.find(one)) for one in stop if one in text),
        default=(len(text), len(text)),
    )
    event("stopped", str(stopped))
    assert stopped == any(one in text for one in stop)
    assert "".join(pieces) == (text[:end] if include else text[:start])

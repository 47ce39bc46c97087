"""A text that begins as an earlier one did is not tokenized from its beginning."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import tokenizers
from tokenizers import AddedToken

from tests.api.tiny_tokenizer import tiny_inner
from tgi_async.text.segments import Segments, cut_tokens


class Counting:
    """A tokenizer that counts the characters it was given."""

    def __init__(self) -> None:
        self._inner = tiny_inner()
        self.model = self._inner.model
        self.n = 0

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self._inner.get_added_tokens_decoder()

    def encode_batch_fast(
        self, texts: list[str], *, add_special_tokens: bool
    ) -> list[tokenizers.Encoding]:
        self.n += sum(map(len, texts))
        return self._inner.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def ids(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids


def turn(number: int, length: int = 50) -> str:
    return f"<|im_start|>{number:0{length}}<|im_end|>\n"


@pytest.fixture
def inner() -> Counting:
    return Counting()


def segments_of(inner: Counting | tokenizers.Tokenizer, **bounds: int) -> Segments:
    return Segments(cast(tokenizers.Tokenizer, inner), **bounds)


def test_what_earlier_texts_had_is_not_tokenized_again(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=20)
    history = "".join(map(turn, range(9)))
    segments.encode(history + turn(9))
    inner.n = 0
    text = history + turn(9) + turn(10)
    assert segments.encode(text) == inner.ids(text)
    assert inner.n < 3 * len(turn(0))


def test_a_text_with_another_beginning_has_its_own_ids(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=20)
    for first in (1, 2):
        text = turn(first) + turn(3) + turn(4)
        assert segments.encode(text) == inner.ids(text)


def test_short_segments_are_joined(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=500)
    text = "".join(map(turn, range(100)))
    assert all(len(segment) >= 500 for segment in list(segments._segments(text))[:-1])
    assert segments.encode(text) == inner.ids(text)


def test_a_text_without_special_tokens_is_one_segment(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=1)
    text = "plain < text <|im <start|>" * 10
    assert list(segments._segments(text)) == [text]
    assert segments.encode(text) == inner.ids(text)
    assert segments.encode("") == []


def test_what_is_kept_is_bounded_and_the_latest(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=20, most_bytes=4000)
    for number in range(100):
        segments.encode(turn(number) + turn(number))
    held = list(segments._ids)
    assert 3 < len(held) < 20
    inner.n = 0
    text = turn(99) + turn(100)
    segments.encode(text)
    assert inner.n == len(text) - text.index("<|im_end|>")


def test_a_segment_larger_than_all_that_is_kept_is_encoded_all_the_same(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=1, most_bytes=100)
    text = turn(0, 1000) + turn(1)
    for _ in range(2):
        assert segments.encode(text) == inner.ids(text)
    assert not segments._ids


def test_threads_do_not_disturb_each_other(inner: Counting) -> None:
    segments = segments_of(inner, least_characters=1, most_bytes=5000)
    wrong = []

    def work(seed: int) -> None:
        for number in range(200):
            text = turn(number % 7) + turn(seed) + turn(number)
            if segments.encode(text) != inner.ids(text):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<a>", lstrip=True, special=True, normalized=False),
        AddedToken("<a>", single_word=True, special=True, normalized=False),
        AddedToken("<a>", special=True, normalized=True),
        AddedToken("<a>", special=False, normalized=False),
        AddedToken("word", special=True, normalized=False),
        AddedToken(" <a>", special=True, normalized=False),
        AddedToken("<" * 200, special=True, normalized=False),
    ],
)
def test_texts_are_not_cut_before_a_token_that_depends_on_what_is_before_it(
    token: AddedToken,
) -> None:
    assert cut_tokens([token]) == []


@pytest.mark.parametrize("other", ["x<a>", "x<a", "<b><a>y", "<a>="])
def test_texts_are_not_cut_before_a_token_that_another_may_reach_into(other: str) -> None:
    plain = AddedToken("<a>", special=True, normalized=False)
    dependent = other.startswith("<a>")
    token = AddedToken(other, special=True, normalized=False, single_word=dependent)
    assert "<a>" not in cut_tokens([plain, token])
    assert cut_tokens([plain]) == ["<a>"]


def test_a_tokenizer_with_dropout_is_left_alone() -> None:
    inner = tiny_inner()
    inner.model = tokenizers.models.BPE(
        vocab=inner.get_vocab(with_added_tokens=False), merges=[], dropout=0.5
    )
    segments = segments_of(inner, least_characters=1)
    assert len(list(segments._segments(turn(0) + turn(1)))) == 1


def test_many_tokens_are_found_as_one_is() -> None:
    inner = tiny_inner()
    inner.add_special_tokens([f"<unused{number}>" for number in range(2000)])
    segments = segments_of(inner, least_characters=1)
    text = "ab<unused7>cd<unused1999>ef<|im_end|>"
    assert list(segments._segments(text)) == ["ab", "<unused7>cd", "<unused1999>ef", "<|im_end|>"]

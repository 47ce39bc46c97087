"""A prompt in pieces: their texts and where they begin."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
from tokenizers import normalizers

from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles.fake_engine import EOS, words
from tgi_async.api.completions.logprobs import LogprobsWriter, Piece, pieces_of
from tgi_async.generation import TopToken
from tgi_async.text.tokenizer import Tokenizer


@pytest.mark.parametrize("prompt", ["", "Hi there", "日本 é!", "a<|im_end|><|im_start|>b"])
def test_the_pieces_are_the_prompt(tokenizer: Tokenizer, prompt: str) -> None:
    pieces = pieces_of(tokenizer, prompt, tokenizer.encode(prompt))
    assert "".join(piece.text for piece in pieces) == prompt
    assert all(prompt.startswith(piece.text, piece.offset) for piece in pieces)


def test_a_special_token_that_the_prompt_does_not_name_takes_no_room(tokenizer: Tokenizer) -> None:
    assert pieces_of(tokenizer, "ab", [256, *tokenizer.encode("ab")]) == [
        Piece(256, "<|im_start|>", 0),
        Piece(64, "a", 0),
        Piece(65, "b", 1),
    ]


def test_a_tokenizer_that_changes_the_text_shifts_no_offset_beyond_its_end() -> None:
    inner = tiny_inner()
    inner.normalizer = normalizers.Replace("A", "bbbb")
    tokenizer = Tokenizer(inner)
    pieces = pieces_of(tokenizer, "Ac", tokenizer.encode("Ac"))
    assert [piece.offset for piece in pieces] == [0, 1, 2, 2, 2]


def test_what_is_written_in_parts_is_what_is_written_at_once(tokenizer: Tokenizer) -> None:
    tokens = [*words("a", "", "bc"), EOS._replace(text="d"), *words("e")]
    parts = LogprobsWriter(tokenizer, 7)
    first, second = parts.write(tokens[:2]), parts.write(tokens[2:])
    whole = LogprobsWriter(tokenizer, 7).write(tokens)
    assert whole.text_offset == [7, 8, 8, 10, 11]
    for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert getattr(first, part) + getattr(second, part) == getattr(whole, part)


def test_a_token_that_cannot_come_has_a_number_all_the_same(tokenizer: Tokenizer) -> None:
    [token] = words("a")
    never = -math.inf
    token = token._replace(logprob=never, top=(TopToken(98, "b", never, False),))
    written = LogprobsWriter(tokenizer, 0).write([token])
    assert written.token_logprobs == [-9999.0]
    assert written.top_logprobs == [{"a": -9999.0, "b": -9999.0}]


class Scores(NamedTuple):
    prompt_logprobs: list[float | None]
    prompt_top_tokens: list[tuple[TopToken, ...]]
    n_cached: int = 0


def test_a_prompt_has_its_likeliest_tokens_and_the_one_that_is_there(tokenizer: Tokenizer) -> None:
    pieces = pieces_of(tokenizer, "abc", tokenizer.encode("abc"))
    top = (TopToken(98, "b", -0.5, False), TopToken(120, "x", -1.0, False))
    written = LogprobsWriter(tokenizer, 3).write(
        words("!"), pieces, Scores([None, -0.5, -7.0], [(), top, top])
    )
    assert written.token_logprobs == [None, -0.5, -7.0, -0.25]
    assert written.top_logprobs == [
        None,
        {"b": -0.5, "x": -1.0},
        {"c": -7.0, "b": -0.5, "x": -1.0},
        {"!": -0.25},
    ]
    assert written.text_offset == [0, 1, 2, 3]

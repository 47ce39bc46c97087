"""A prompt in pieces: their texts and where they begin."""

from __future__ import annotations

import pytest
from tokenizers import normalizers

from tests.api.fake_engine import EOS, words
from tests.api.tiny_tokenizer import tiny_inner
from tgi_async.api.completion_logprobs import LogprobsWriter, Piece, pieces_of
from tgi_async.text.tokenizer import Tokenizer


@pytest.mark.parametrize("prompt", ["", "Hi there", "日本 é!", "a<|im_end|><|im_start|>b"])
def test_the_pieces_are_the_prompt(tokenizer, prompt):
    pieces = pieces_of(tokenizer, prompt, tokenizer.encode(prompt))
    assert "".join(piece.text for piece in pieces) == prompt
    assert all(prompt.startswith(piece.text, piece.offset) for piece in pieces)


def test_a_special_token_that_the_prompt_does_not_name_takes_no_room(tokenizer):
    assert pieces_of(tokenizer, "ab", [256, *tokenizer.encode("ab")]) == [
        Piece("<|im_start|>", 0),
        Piece("a", 0),
        Piece("b", 1),
    ]


def test_a_tokenizer_that_changes_the_text_shifts_no_offset_beyond_its_end():
    inner = tiny_inner()
    inner.normalizer = normalizers.Replace("A", "bbbb")
    tokenizer = Tokenizer(inner)
    pieces = pieces_of(tokenizer, "Ac", tokenizer.encode("Ac"))
    assert [piece.offset for piece in pieces] == [0, 1, 2, 2, 2]


def test_what_is_written_in_parts_is_what_is_written_at_once(tokenizer):
    tokens = [*words("a", "", "bc"), EOS._replace(text="d"), *words("e")]
    parts = LogprobsWriter(tokenizer, 7)
    first, second = parts.write(tokens[:2]), parts.write(tokens[2:])
    whole = LogprobsWriter(tokenizer, 7).write(tokens)
    assert whole.text_offset == [7, 8, 8, 10, 11]
    for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert getattr(first, part) + getattr(second, part) == getattr(whole, part)

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models

from tests.api.tiny_tokenizer import tiny_tokenizer
from tgi_async.text.stream import MOST_TOKENS, Detokenizer, TextStream
from tgi_async.text.tokenizer import Tokenizer

TINY = tiny_tokenizer()
END = TINY.encode("<|im_end|>")[0]


class ByteFallback:
    """Decodes as SentencePiece models with byte fallback do, a byte a token.

    All bytes in a row are U+FFFD each, unless the row is valid UTF-8; a leading space is dropped.
    """

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def decode(self, ids: list[int]) -> str:
        self.decoded.append(len(ids))
        text = ""
        row: list[int] = []
        for id in [*ids, -1]:
            if id >= 0x80:
                row.append(id)
                continue
            try:
                text += bytes(row).decode()
            except UnicodeDecodeError:
                text += "\ufffd" * len(row)
            row.clear()
            text += chr(id) if id >= 0 else ""
        return text.removeprefix(" ")

    def is_special(self, id: int) -> bool:
        return id == 0


def pieces(text: str | list[int], prompt: str = "", tokenizer: Tokenizer = TINY) -> list[str]:
    detokenizer = Detokenizer(tokenizer, tokenizer.encode(prompt))
    ids = tokenizer.encode(text) if isinstance(text, str) else text
    return [detokenizer.push(id) for id in ids]


def test_a_character_comes_with_its_last_byte() -> None:
    assert pieces("a한🙂b") == ["a", "", "", "한", "", "", "", "🙂", "b"]


def test_garbage_bytes_come_out_as_the_decoder_shows_them() -> None:
    garbage = [id for text in ("€", "🙂", "한") for id in TINY.encode(text)[:-1]] * 30
    detokenizer = Detokenizer(TINY, [])
    text = "".join(map(detokenizer.push, garbage)) + detokenizer.flush()
    assert text == TINY.decode(garbage)


def test_a_row_of_garbage_holds_back_one_character_at_most() -> None:
    byte = TINY.encode("€")[1]
    text = "".join(pieces([byte] * 100))
    assert text == "\ufffd" * 99


def test_a_token_that_ends_one_character_and_begins_another() -> None:
    vocabulary = TINY.inner.get_vocab(with_added_tokens=False)
    letters = [TINY.inner.id_to_token(id) or "" for id in TINY.encode("한")]
    across = letters[2] + letters[0] + letters[1]
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary | {across: 1000}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    first, second, third = (vocabulary[letter] for letter in letters)
    ids = [first, second, *[1000] * 50, third]
    assert pieces(ids, tokenizer=Tokenizer(inner)) == ["", "", *["한"] * 51]


def test_special_tokens_add_no_text_and_split_no_character() -> None:
    first, second, third = TINY.encode("한")
    assert pieces([first, END, second, third, END]) == ["", "", "", "한", ""]


def test_flush_gives_what_was_held_back_once() -> None:
    detokenizer = Detokenizer(TINY, [])
    assert [detokenizer.push(id) for id in TINY.encode("한")[:2]] == ["", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_the_prompt_is_context_and_not_text() -> None:
    decoder = ByteFallback()
    detokenizer = Detokenizer(decoder, list(b"prompt"))
    assert [detokenizer.push(id) for id in b" a b"] == [" ", "a", " ", "b"]
    without = Detokenizer(decoder, [0, 0])
    assert [without.push(id) for id in b" a b"] == ["", "a", " ", "b"]


@pytest.mark.parametrize("prompt", ["", "a", "🙂🙂", "é"])
def test_byte_fallback_shows_no_half_character(prompt: str) -> None:
    detokenizer = Detokenizer(ByteFallback(), list(prompt.encode()))
    text = "한국어 🙂🙂é. " * 4
    shown = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(shown).strip() == text.strip()
    assert "\ufffd" not in "".join(shown)


def test_the_cost_of_a_token_does_not_grow() -> None:
    for text in ("plain text " * 100, "한" * 400, "€" * 400):
        decoder = ByteFallback()
        detokenizer = Detokenizer(decoder, [])
        for byte in text.encode():
            detokenizer.push(byte)
        for _ in range(500):
            detokenizer.push(0x80)
        assert max(decoder.decoded) <= MOST_TOKENS + 4


def streamed(
    text: str, stop: tuple[str, ...], include: bool, prompt: str = ""
) -> tuple[list[str], bool]:
    stream = TextStream(TINY, TINY.encode(prompt), stop, include)
    shown: list[str] = []
    for id in TINY.encode(text):
        piece, stopped = stream.push(id)
        shown.append(piece)
        if stopped:
            return shown, True
    shown.append(stream.flush())
    return shown, False


@pytest.mark.parametrize(
    ("text", "stop", "kept", "whole"),
    [
        ("one END two", ("END",), "one ", "one END"),
        ("one EEND two", ("END",), "one E", "one EEND"),
        ("aab", ("aab",), "", "aab"),
        ("ababac!", ("abac",), "ab", "ababac"),
        ("xab", ("b", "ab"), "x", "xab"),
        ("x한국어", ("한국",), "x", "x한국"),
        ("xabcd", ("abcd", "bc"), "xa", "xabc"),
        ("\n\nx", ("\n",), "", "\n"),
    ],
)
def test_the_text_ends_at_the_first_stop_sequence_that_is_complete(
    text: str, stop: tuple[str, ...], kept: str, whole: str
) -> None:
    shown, stopped = streamed(text, stop, include=False)
    assert ("".join(shown), stopped) == (kept, True)
    shown, stopped = streamed(text, stop, include=True)
    assert ("".join(shown), stopped) == (whole, True)


@pytest.mark.parametrize("include", [True, False])
def test_the_end_within_the_next_tokens_is_where_pushing_them_ends(include: bool) -> None:
    ids = TINY.encode("é, and the END of it")
    pushed = TextStream(TINY, [], ("END",), include)
    n = next(n for n, id in enumerate(ids, 1) if pushed.push(id)[1])
    for n_before in range(n):
        stream = TextStream(TINY, [], ("END",), include)
        before = "".join(stream.push(id)[0] for id in ids[:n_before])
        assert stream.end_within(ids[n_before : n - 1]) is None
        assert stream.end_within(ids[n_before:]) == n - n_before
        # It has looked ahead only.
        after = "".join(stream.push(id)[0] for id in ids[n_before:n])
        assert before + after == "é, and the " + ("END" if include else "")


@pytest.mark.parametrize("include", [True, False])
def test_without_a_stop_sequence_in_it_the_text_is_whole(include: bool) -> None:
    shown, stopped = streamed("ENENDE, almost EN", ("END!", "zzz"), include)
    assert ("".join(shown), stopped) == ("ENENDE, almost EN", False)


def test_included_stop_sequences_hold_nothing_back() -> None:
    shown, _ = streamed("EN", ("END",), include=True)
    assert shown == ["E", "N", ""]


def test_excluded_ones_hold_back_no_more_than_their_beginning() -> None:
    shown, _ = streamed("aEaEN", ("END",), include=False)
    assert shown == ["a", "", "Ea", "", "", "EN"]


@pytest.mark.parametrize("include", [True, False])
def test_a_stop_sequence_does_not_begin_in_the_prompt(include: bool) -> None:
    shown, stopped = streamed("D and on", ("END",), include, prompt="EN")
    assert ("".join(shown), stopped) == ("D and on", False)


@pytest.mark.parametrize("include", [True, False])
def test_a_special_token_that_is_shown_is_part_of_the_text(include: bool) -> None:
    def stream(stop: str) -> str:
        shown = {END: "<|im_end|>"}
        texts = TextStream(TINY, [], (stop,), include, shown)
        pieces = [texts.push(id) for id in [*TINY.encode("ab"), END, *TINY.encode("cd")]]
        end = next((place for place, (_, stopped) in enumerate(pieces) if stopped), len(pieces))
        return "".join(text for text, _ in pieces[: end + 1]) + (
            "" if end < len(pieces) else texts.flush()
        )

    # What may become a stop sequence is held back before it, and comes before it.
    assert stream("bx") == "ab<|im_end|>cd"
    assert stream("|>c") == ("ab<|im_end|>c" if include else "ab<|im_end")

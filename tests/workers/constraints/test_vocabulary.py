"""Compiled grammars that are kept for the next rows, and how much memory they may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import Json, Regex, encode
from workers.constraints import vocabulary as module
from workers.constraints.vocabulary import Vocabulary


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    folder, size = save_tiny_tokenizer(tmp_path)
    return Vocabulary(folder, size, [END])


def test_a_grammar_is_compiled_once(vocabulary: Vocabulary) -> None:
    encoded = encode(Regex("[a-z]+"))
    assert vocabulary.compiled(encoded) is vocabulary.compiled(encoded)


def test_the_grammars_used_last_are_kept_within_bytes(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [encode(Regex(f"[a-z]{{{n}}}")) for n in range(1, 9)]
    size = vocabulary.compiled(names[0]).nbytes
    monkeypatch.setattr(module, "MOST_BYTES", int(3.5 * size))
    kept = [vocabulary.compiled(name) for name in names[:3]]
    assert vocabulary.compiled(names[0]) is kept[0]  # used last, now
    vocabulary.compiled(names[3])
    assert vocabulary.compiled(names[0]) is kept[0]
    assert vocabulary.compiled(names[1]) is not kept[1]
    for name in names:
        vocabulary.compiled(name)
        assert len(vocabulary._compiled) <= 4
        assert sum(one.nbytes for one in vocabulary._compiled.values()) <= 3.5 * size


def test_no_more_than_so_many_are_kept(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    for n in range(1, 5):
        vocabulary.compiled(encode(Regex(f"[a-z]{{{n}}}")))
    assert len(vocabulary._compiled) == 2


def test_one_beyond_the_limit_is_still_followed(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    assert vocabulary.compiled(encode(Regex("a"))).matcher().complete is False


def test_a_longer_grammar_counts_more(vocabulary: Vocabulary) -> None:
    short = vocabulary.compiled(encode(Json({"enum": ["a"]})))
    long = vocabulary.compiled(encode(Json({"enum": [f"word {n}" for n in range(2000)]})))
    assert long.nbytes > short.nbytes + 10 * 2000


def test_what_has_grown_too_large_is_compiled_anew(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(Regex("[a-z]{3,9}x"))
    first = vocabulary.compiled(encoded)
    assert first.foresight is not None
    node = first.foresight.after(first.foresight.start, vocabulary.tokens("abcde"))
    assert node is not None
    mask = np.zeros(vocabulary.token_table.n_words, np.int32)
    matcher = first.matcher()
    for _ in range(20):
        matcher.fill(mask)
    assert vocabulary.compiled(encoded) is first
    monkeypatch.setattr(module, "MOST_BYTES_EACH", 1000)
    assert vocabulary.compiled(encoded) is not first

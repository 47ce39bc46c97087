"""Bounds on the tokens of what is left of a text, and where all tokens of a vocabulary lead."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import Grammar, Json, Regex, encode
from tgi_async.wire.messages import Constraint
from workers.constraints.expressions import ENDLESS, Expressions
from workers.constraints.language import language
from workers.constraints.progress import Progress
from workers.constraints.runs import Runs
from workers.constraints.token_counts import TokenCounts
from workers.constraints.tokens import TokenTable, allowed_in
from workers.constraints.trie import Trie
from workers.constraints.vocabulary import Vocabulary

GRAMMARS: list[Grammar] = [
    Regex("[a-z ]{400}"),
    Regex("(ab|c){20,}x|[0-9]{7}"),
    Regex("(.|\n){30}"),
    Json({"type": "string", "minLength": 50}),
    Json({"enum": ["open", "a much longer one", 7]}),
    Json({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5}),
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), "a" + 33 * " " + "a")
    return Vocabulary(folder, size, [END])


def runs_of(table: dict[str, int]) -> Runs:
    return Runs({text.encode(): token for text, token in table.items()})


def test_a_run_takes_the_longest_tokens_first() -> None:
    runs = runs_of({"a": 1, "aaaa": 2, "b": 3, "ab": 4})
    a_or_b = 1 << ord("a") | 1 << ord("b")
    assert runs.tokens(a_or_b, 11) == [2, 2, 1, 1, 1]
    assert [runs.count(a_or_b, n) for n in (0, 3, 4, 11)] == [0, 3, 1, 5]
    counts = [runs.count(a_or_b, n) for n in range(40)]
    for n in range(40):
        most, fewer = runs.most(a_or_b, n), [one for one in counts[: n + 1] if one is not None]
        assert most is not None
        assert len(fewer) == n + 1
        assert most >= max(fewer)


def test_a_byte_that_is_no_token_of_its_own_makes_no_run() -> None:
    assert runs_of({"aa": 1}).tokens(1 << ord("a"), 3) is None
    assert runs_of({"b": 1}).count(1 << ord("a"), 3) is None


@pytest.mark.parametrize("grammar", GRAMMARS, ids=str)
def test_the_bounds_hold_wherever_a_text_goes(vocabulary: Vocabulary, grammar: Grammar) -> None:
    table = vocabulary.token_table
    for seed in range(5):
        expressions = Expressions(table.fillers)
        counts = TokenCounts(expressions, table)
        node = language(expressions, grammar, lambda name: None)
        expressions.settle()
        draw, most = Random(seed), counts.most(node)
        for _ in range(60):
            way = counts.way(node)
            assert way is not None
            assert len(way) <= counts.enough(node) <= most
            after = node
            for token in way:
                for symbol in table.symbols[token]:
                    after = expressions.after(after, symbol)
            assert after.nullable
            most = min(most, counts.most(node))
            steps = expressions.steps(node)
            if not steps:
                break
            node = draw.choice(steps)[1]


def test_a_run_of_a_class_is_counted_in_tokens_and_free_text_is_not_bounded(
    vocabulary: Vocabulary,
) -> None:
    table = vocabulary.token_table
    expressions = Expressions(table.fillers)
    counts = TokenCounts(expressions, table)
    node = language(expressions, Regex("[a-z ]{400}"), lambda name: None)
    byte_runs = table.runs.count(sum(1 << byte for byte in b"abcdefghijklmnopqrstuvwxyz "), 400)
    assert counts.enough(node) == byte_runs
    anything = language(expressions, Json({}), lambda name: None)
    assert counts.most(anything) >= ENDLESS


def test_each_token_ends_where_its_bytes_lead(vocabulary: Vocabulary) -> None:
    texts = vocabulary.engine.token_texts
    trie = Trie(texts)
    prefixes = [b""]
    before = [b""]
    for level in trie.levels:
        before = [
            before[parent] + bytes([byte])
            for parent, byte in zip(level.parents.tolist(), level.bytes.tolist(), strict=True)
        ]
        prefixes += before
    assert len(prefixes) == trie.n_prefixes == len(set(prefixes))
    assert [prefixes[place] for place in trie.ends.tolist()] == [text or b"" for text in texts]


@pytest.mark.parametrize("jump_forward", [True, False])
def test_a_long_run_is_completed_within_a_budget_that_only_long_tokens_fit(
    vocabulary: Vocabulary, jump_forward: bool
) -> None:
    """And until then, other tokens may come."""
    table: TokenTable = vocabulary.token_table
    grammar = Regex("[ ]{300}|[a-z ]{300}")
    least = table.runs.count(1 << ord(" "), 300)
    assert least is not None
    assert least < 100, "the vocabulary has tokens of several spaces"
    budget = least + 8
    mask = np.zeros(-(-len(table.symbols) // 32), np.int32)
    progress = Progress(Constraint(encode(grammar), budget), jump_forward, mask)
    progress.begin(vocabulary, [])
    said: list[int] = []
    n_free = 0
    while len(said) < budget:
        if progress.jump_forward_tokens:
            tokens = list(progress.jump_forward_tokens)
        else:
            allowed = allowed_in(progress.mask)
            n_free += len(allowed) > 1
            tokens = [min(allowed.tolist(), key=lambda one: len(table.symbols[one]))]
        said += tokens
        if said[-1] == END:
            break
        progress.advance(tokens)
    text = b"".join(bytes(table.symbols[one]) for one in said if one != END)
    assert len(text) == 300
    assert n_free >= 3


def test_a_run_of_any_characters_is_counted_in_tokens_too(vocabulary: Vocabulary) -> None:
    """Some have several bytes, and others are a byte each."""
    table = vocabulary.token_table
    expressions = Expressions(table.fillers)
    counts = TokenCounts(expressions, table)
    spaces = table.runs.count(1 << ord(" "), 400)
    assert spaces is not None
    for pattern in ("(.|\n){400}", "[^\n]{400}"):
        node = language(expressions, Regex(pattern), lambda name: None)
        assert counts.enough(node) <= spaces < 100
        assert counts.most(node) < 110
        begun = expressions.after(node, "가".encode()[0])
        assert counts.enough(begun) <= counts.most(node)

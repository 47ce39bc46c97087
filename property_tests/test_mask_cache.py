"""A mask that is kept is the one that the engine gives, wherever a text has gone meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from property_tests.test_grammar import patterns, schemas
from property_tests.test_grammar_texts import regexes
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import Grammar, Json, Regex, encode
from tgi_async.grammar.schema.errors import SchemaError
from tgi_async.grammar.schema.normalize import normalize
from tgi_async.wire.messages import Constraint
from workers.constraints.foresight import Foresight
from workers.constraints.mask_cache import MaskCache
from workers.constraints.nodes import Expression
from workers.constraints.progress import Progress
from workers.constraints.tokens import allowed_in
from workers.constraints.vocabulary import Vocabulary
from workers.grammar.engine import GrammarError, Matcher

WALKS = 4
STEPS = 40
counts = st.sampled_from(
    ["{2}", "{7}", "{30}", "{9,}", "{30,}", "{0,40}", "{5,30}", "{3,5}", "*", "+"]
)
counted = st.recursive(
    st.sampled_from(["a", "b", "[a-z ]", "[^a]", "(.|\n)", "abc", "é", "0{2}"]),
    lambda inner: st.one_of(
        st.builds("({}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("({}){}".format, inner, counts),
    ),
    max_leaves=6,
)
long_values = st.one_of(
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        schemas,
        st.integers(0, 20),
        st.integers(0, 20),
    ),
)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with tempfile.TemporaryDirectory() as name:
        folder, size = save_tiny_tokenizer(Path(name))
        yield Vocabulary(folder, size, [END])


def words(vocabulary: Vocabulary) -> NDArray[np.int32]:
    return np.zeros(vocabulary.token_table.n_words, np.int32)


def foresight_of(vocabulary: Vocabulary, grammar: Grammar) -> tuple[Foresight, Matcher] | None:
    try:
        compiled = vocabulary.compiled(encode(grammar))
    except GrammarError:
        event("refused")
        return None
    matcher = compiled.matcher()
    if compiled.foresight is None or matcher.remembers:
        event("nothing is kept")
        return None
    return compiled.foresight, matcher


def check_windows(vocabulary: Vocabulary, grammar: Grammar, seed: int) -> None:
    """Wherever a window is the same, the engine's mask is."""
    found = foresight_of(vocabulary, grammar)
    if found is None:
        return
    foresight, beginning = found
    cache = MaskCache(foresight._expressions, vocabulary.token_table.longest)
    seen: dict[Expression, NDArray[np.int32]] = {}
    mask = words(vocabulary)
    n_again = 0
    for walk in range(WALKS):
        random = Random(seed + walk)
        matcher, node = beginning.copy(), foresight.start
        for _ in range(STEPS):
            tokens = [] if matcher.ended else matcher.jump_forward_tokens()
            if not tokens and not matcher.ended:
                matcher.fill(mask)
                key = cache.window(node)
                n_again += key in seen
                known = seen.setdefault(key, mask.copy())
                assert np.array_equal(known, mask), (grammar, allowed_in(known ^ mask))
                tokens = [random.choice(allowed_in(mask).tolist())]
            if not tokens or tokens[0] == END:
                break
            matcher.advance(tokens)
            after = foresight.after(node, tokens)
            if after is None:
                break
            node = after
    event(f"the same again: {n_again > 0}")


def normal(schema: Any, shared: Any) -> Grammar | None:
    try:
        return Json(normalize({"$defs": {"it": shared}, "allOf": [schema]}))
    except SchemaError:
        return None


@given(schemas | long_values, schemas, st.integers(0, 2**32))
def test_equal_windows_of_values_have_equal_masks(
    vocabulary: Vocabulary, schema: Any, shared: Any, seed: int
) -> None:
    grammar = normal(schema, shared)
    if grammar is not None:
        check_windows(vocabulary, grammar, seed)


@given(regexes | patterns | counted, st.integers(0, 2**32))
@example("[a-z ]{4000}", 0)
@example("(a{30}b|[ab]{40}c){0,20}d", 1)
def test_equal_windows_of_regular_expressions_have_equal_masks(
    vocabulary: Vocabulary, pattern: str, seed: int
) -> None:
    check_windows(vocabulary, Regex(pattern), seed)


class Forgetful(MaskCache):
    """Asks the engine each time."""

    def put(self, node: Expression, mask: NDArray[np.int32]) -> None:
        pass


@settings(max_examples=max(10, settings().max_examples // 3))
@given(schemas | long_values | counted, schemas, st.integers(3, 60), st.integers(0, 2**32))
def test_texts_go_on_in_the_same_ways_with_and_without_what_is_kept(
    vocabulary: Vocabulary, schema: Any, shared: Any, most: int, seed: int
) -> None:
    """Also where tokens are left out, so that the rest fits."""
    grammar = Regex(schema) if isinstance(schema, str) else normal(schema, shared)
    if grammar is None or foresight_of(vocabulary, grammar) is None:
        return
    plain = Vocabulary.__new__(Vocabulary)
    plain.__dict__.update(vocabulary.__dict__, _compiled=type(vocabulary._compiled)())
    foresight = plain.compiled(encode(grammar)).foresight
    assert foresight is not None
    foresight._masks = Forgetful(foresight._expressions, vocabulary.token_table.longest)
    for walk in range(WALKS):
        random = Random(seed + walk)
        ways = [
            Progress(Constraint(encode(grammar), most), True, words(vocabulary)) for _ in range(2)
        ]
        for one, tables in zip(ways, (vocabulary, plain), strict=True):
            one.begin(tables, [])
        left = most
        while left > 0:
            kept, asked = ways
            assert kept.jump_forward_tokens == asked.jump_forward_tokens
            assert np.array_equal(kept.mask, asked.mask), (grammar, seed + walk, left)
            tokens = kept.jump_forward_tokens or [random.choice(allowed_in(kept.mask).tolist())]
            if tokens[-1] == END:
                break
            left -= len(tokens)
            for one in ways:
                one.advance(tokens)

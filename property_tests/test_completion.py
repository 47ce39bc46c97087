"""A budget with room for the shortest text, and a little more, always ends with a whole text."""

from __future__ import annotations

import itertools
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from property_tests.test_grammar import _orders, patterns, schemas, values
from property_tests.test_grammar_texts import regexes
from tests.grammar.engines import accepts as follows
from tests.grammar.engines import engine_of
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import Grammar, Json, Regex, encode
from tgi_async.grammar.schema.errors import SchemaError
from tgi_async.grammar.schema.normalize import normalize
from tgi_async.wire.messages import Constraint
from workers.constraints.expressions import Expressions
from workers.constraints.formats import FORMATS
from workers.constraints.language import language
from workers.constraints.nodes import Expression
from workers.constraints.patterns import matching
from workers.constraints.progress import Progress
from workers.constraints.tokens import allowed_in
from workers.constraints.vocabulary import Vocabulary
from workers.grammar.engine import GrammarError

MOST = 200
"""Tokens of the shortest texts that are waited for."""
formats = st.sampled_from([*FORMATS, "date", "time", "date-time"]).map(
    lambda name: {"type": "string", "format": name}
)
required = st.builds(
    lambda one, other: {
        "type": "object",
        "properties": {"x": one, "y": other},
        "required": ["x"],
    },
    formats | schemas,
    schemas,
)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with tempfile.TemporaryDirectory() as name:
        folder, size = save_tiny_tokenizer(Path(name))
        yield Vocabulary(folder, size, [END])


def finished(
    vocabulary: Vocabulary, grammar: Grammar, room: Any, seed: int, jump_forward: bool
) -> None:
    """Have a model that says anything say a text, in `room(tokens of the shortest one)` tokens."""
    try:
        compiled = vocabulary.compiled(encode(grammar))
    except GrammarError:
        event("refused")
        return
    foresight = compiled.foresight
    if foresight is None:
        assert "uniqueItems" in encode(grammar)
        event("items are compared")
        return
    way = foresight.way(foresight.start)
    assert way is not None
    if len(way) > MOST:
        event("long")
        return
    left = most = room(len(way))
    mask = np.zeros(vocabulary.token_table.n_words, np.int32)
    following = Progress(Constraint(encode(grammar), most), jump_forward, mask)
    following.begin(vocabulary, [])
    random = Random(seed)
    matcher = compiled.matcher()
    while left:
        tokens = following.jump_forward_tokens or [random.choice(allowed_in(mask).tolist())]
        if tokens[-1] == END:
            tokens, left = tokens[:-1], len(tokens) - 1
        if tokens:
            matcher.advance(tokens)
            following.advance(tokens)
            left -= len(tokens)
    event("more than needed" if most > len(way) else "just enough")
    assert matcher.complete, (grammar, most, len(way))


rooms = st.one_of(
    st.just(lambda n: max(n, 1)),
    st.integers(0, 15).map(lambda more: lambda n: max(n + 3, math.ceil(1.25 * n)) + more),
)


@settings(max_examples=max(10, settings().max_examples // 2))
@given(formats | schemas | required, schemas, rooms, st.integers(0, 2**32), st.booleans())
def test_values_are_completed(
    vocabulary: Vocabulary, schema: Any, shared: Any, room: Any, seed: int, jump_forward: bool
) -> None:
    try:
        grammar = Json(normalize({"$defs": {"it": shared}, "allOf": [schema]}))
    except SchemaError:
        return
    finished(vocabulary, grammar, room, seed, jump_forward)


@settings(max_examples=max(10, settings().max_examples // 2))
@given(regexes | patterns, rooms, st.integers(0, 2**32), st.booleans())
def test_matches_are_completed(
    vocabulary: Vocabulary, pattern: str, room: Any, seed: int, jump_forward: bool
) -> None:
    finished(vocabulary, Regex(pattern), room, seed, jump_forward)


def has(expressions: Expressions, node: Expression, text: str) -> bool:
    for byte in text.encode():
        node = expressions.after(node, byte)
    return node.nullable


few = st.recursive(
    st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "é", "b?"]),
    lambda inner: st.one_of(
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,3}", "{2}"])),
    ),
    max_leaves=5,
)
SHORT = ["".join(one) for n in range(5) for one in itertools.product("abé", repeat=n)]


@given(few, few)
def test_an_expression_has_the_texts_that_match_and_knows_the_shortest(
    pattern: str, other: str
) -> None:
    expressions = Expressions()
    whole, second = matching(expressions, pattern), matching(expressions, other)
    both = expressions.both([whole, second])
    without = expressions.both([whole, expressions.other(second)])
    in_whole = {text for text in SHORT if re.fullmatch(pattern, text)}
    in_second = {text for text in SHORT if re.fullmatch(other, text)}
    for node, texts in (
        (whole, in_whole),
        (both, in_whole & in_second),
        (without, in_whole - in_second),
    ):
        assert {text for text in SHORT if has(expressions, node, text)} == texts
        for text in texts:
            assert expressions.cost(node) <= len(text.encode())
        if expressions.cost(node) < 100:
            least = bytes(expressions.least(node))
            assert len(least) == expressions.cost(node)
            after = node
            for byte in least:
                after = expressions.after(after, byte)
            assert after.nullable


@given(schemas, schemas, st.lists(values, min_size=1, max_size=8))
def test_an_expression_has_the_values_that_the_engine_takes(
    schema: Any, shared: Any, candidates: list[Any]
) -> None:
    try:
        grammar = Json(normalize({"$defs": {"it": shared}, "allOf": [schema]}))
        matcher = engine_of().matcher(grammar)
    except (SchemaError, GrammarError):
        assume(False)
    assume("uniqueItems" not in encode(grammar))  # expressions have no memory
    expressions = Expressions()
    node = language(expressions, grammar, lambda name: None)
    for value in candidates:
        for text in _orders(value):
            taken = follows(matcher, text)
            event(f"taken: {taken}")
            assert has(expressions, node, text) == taken, (grammar, text)
            if taken:
                assert expressions.cost(node) <= len(text.encode())
                assert json.loads(text) == value

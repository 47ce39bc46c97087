"""Whatever a model of random weights says at a high temperature follows the grammar.

It does in any batch, looking ahead or not, and after preemptions, with the same text.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from property_tests.test_grammar import schemas
from tests.helpers.drive import Drive
from tests.helpers.loading import load
from tests.helpers.tiny_llama import save_tiny_llama
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import Grammar, Json, Regex
from tgi_async.grammar.schema.errors import SchemaError
from tgi_async.grammar.schema.normalize import normalize
from tgi_async.wire.messages import Sampling
from workers.constraints.vocabulary import Vocabulary
from workers.grammar.engine import GrammarError
from workers.models.loading import Loaded

PROMPT = [5, 6, 7]
regexes = st.recursive(
    st.sampled_from(["a", "b", "[a-z]", "[^a]", "0{2}", "[가-힣]", "x{1,3}", "\\\\.", "q+", "é*"]),
    lambda inner: st.one_of(
        st.builds("({}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("({}){{1,3}}".format, inner),
        st.builds("({})*".format, inner),
    ),
    max_leaves=6,
)


class Small(NamedTuple):
    model: Loaded
    vocabulary: Vocabulary


@pytest.fixture(scope="module")
def small() -> Iterator[Small]:
    with tempfile.TemporaryDirectory() as name:
        folder, size = save_tiny_tokenizer(Path(name))
        save_tiny_llama(folder, vocabulary=size)
        model = load(folder, torch.float32, torch.device("cpu"))
        yield Small(model, Vocabulary(folder, size, [END]))


class Case(NamedTuple):
    grammar: Grammar
    most: int
    sampling: Sampling


def said(drive: Drive, cases: list[Case]) -> list[tuple[list[int], str | None]]:
    numbers = [drive.submit(PROMPT, one.most, one.grammar, one.sampling) for one in cases]
    drive.run()
    assert not drive.errors
    return [(drive.said[number], drive.reasons[number]) for number in numbers]


def parsed(text: str) -> list[Any] | None:
    """The value, in a list; None if it is no JSON."""
    try:
        return [json.loads(text)]
    except ValueError:
        return None


def is_valid(schema: Any, value: Any) -> bool:
    try:
        return bool(Draft202012Validator(schema).is_valid(value))
    except RecursionError:  # a reference that leads back to itself, where nothing depends on it
        reject()


def needed(small: Small, grammar: Grammar) -> int | None:
    """Tokens of a text that completes the grammar, if one is found."""
    completer = small.vocabulary.completer
    mask = np.zeros(completer._n_words, np.int32)
    way = completer.shortest(small.vocabulary.engine.matcher(grammar), 100, mask)
    return None if way is None else len(way)


@settings(max_examples=max(10, settings().max_examples // 4))
@given(
    schema=st.lists(schemas, min_size=1, max_size=3),
    shared=schemas,
    regex=st.lists(regexes, min_size=1, max_size=2),
    most=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.5, 2.0, 10.0]),
)
def test_texts_follow_their_grammars_and_are_the_same_in_any_crowd(
    small: Small,
    schema: list[Any],
    shared: Any,
    regex: list[str],
    most: int,
    seed: int,
    temperature: float,
) -> None:
    given_schemas: dict[int, Any] = {}
    cases: list[Case] = []
    for one in [*({"$defs": {"it": shared}, "allOf": [it]} for it in schema), *regex]:
        try:
            grammar = Regex(one) if isinstance(one, str) else Json(normalize(one))
            small.vocabulary.engine.matcher(grammar)
        except (SchemaError, GrammarError):
            continue
        if not isinstance(one, str):
            given_schemas[len(cases)] = one
        logprobs = len(cases) % 2 == 0
        sampling = Sampling(do_sample=True, temperature=temperature, seed=seed, logprobs=logprobs)
        cases.append(Case(grammar, most, sampling))
    alone = [said(Drive(small.model, small.vocabulary), [case])[0] for case in cases]
    for number, (case, (tokens, reason)) in enumerate(zip(cases, alone, strict=True)):
        text = small.vocabulary._tokenizer.decode(tokens)
        least = needed(small, case.grammar)
        if reason == "length" and (least is None or least > most):
            event("cut")
            matcher = small.vocabulary.engine.matcher(case.grammar)
            matcher.advance(tokens)  # the beginning of some text
        elif number in given_schemas:
            event("a value")
            shown = given_schemas[number], case, least, text
            value = parsed(text)
            assert value is not None, shown
            assert is_valid(given_schemas[number], value[0]), shown
        elif isinstance(case.grammar, Regex):
            event("a match")
            assert re.fullmatch(case.grammar.pattern, text), text
    assert said(Drive(small.model, small.vocabulary, overlap=True), cases) == alone
    crowded = Drive(small.model, small.vocabulary, n_blocks=20)
    assert said(crowded, cases * 3) == alone * 3
    event(f"preemptions: {min(1, crowded.core.n_preemptions)}")

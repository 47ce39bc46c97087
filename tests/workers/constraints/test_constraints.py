"""Rows that follow grammars: completion within a budget, forced tokens, masks that are not ready,
failures."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import (
    ContextFree,
    Grammar,
    Json,
    Prose,
    Regex,
    Repeat,
    Tag,
    Tagged,
    Text,
    encode,
)
from tgi_async.grammar.grammar import Sequence as InSequence
from tgi_async.wire.messages import Constraint
from workers.constraints.constraints import NICENESS, Constraints, _be_nice
from workers.constraints.growth import MOST, openings
from workers.constraints.progress import Progress
from workers.constraints.vocabulary import Compiled, Vocabulary
from workers.grammar.engine import GrammarError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "friends": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TAGS = [Tag("<", "<f>", Json({"type": "integer"}), "</f>")]
IN_OTHER_WORDS: list[tuple[Grammar, str]] = [
    (
        ContextFree('root ::= "(" [0-9]+ ("+" [a-z]+ "=" [a-z]{9})? ")"'),
        r"\(\d+(\+[a-z]+=[a-z]{9})?\)",
    ),
    (ContextFree('start: "all " /[a-z]+/ (" from " /[a-z]/)? ";"'), "all [a-z]+( from [a-z])?;"),
    (Tagged(TAGS), r"([^<]*<f>-?\d+</f>)*[^<]*"),
    (Tagged(TAGS, begins=True, ends=True), r"<f>-?\d+</f>"),
]
"""Grammars, and regular expressions of the same texts."""
GRAMMARS: list[Grammar] = [
    Json(PERSON),
    Json({"type": "array", "items": {"type": "boolean"}, "minItems": 4}),
    Json({"enum": ["a rather long word", "short", "s"]}),
    Json({"type": "string", "minLength": 20, "maxLength": 30}),
    Json({"type": "array", "items": {"type": "integer", "multipleOf": 17}, "minItems": 1}),
    Json({"type": "integer", "multipleOf": 19, "minimum": 1000, "maximum": 5000}),
    Json({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number"}}]}),
    Regex("(abc|d)+z"),
    Regex("[a-f0-9]{8}(-[a-f0-9]{4}){3}"),
    Regex("(abc)*"),
    Regex("[가-힣]*"),
    Regex("([가-힣]|(a)*)"),
    InSequence([Prose("</t>"), Text("<"), Json({"type": "integer"}), Text(">")]),
    InSequence([Prose("</t>"), Text("<"), Json({"type": "string", "minLength": 1}), Text(">")]),
    Repeat(Json({"type": "object", "properties": {"x": {"const": 1}}}), 1, 4, ";\n"),
    *(ours for ours, _ in IN_OTHER_WORDS),
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return Vocabulary(folder, size, [END])


def text_of(vocabulary: Vocabulary, tokens: Sequence[int]) -> str:
    return vocabulary._tokenizer.decode(list(tokens))


def accepts(grammar: Grammar, text: str) -> bool:
    if isinstance(grammar, Json):
        valid: bool = Draft202012Validator(grammar.schema).is_valid(json.loads(text))
        return valid
    if isinstance(grammar, Regex):
        return re.fullmatch(grammar.pattern, text) is not None
    if isinstance(grammar, InSequence):
        return re.fullmatch(r'.*?</t><(-?\d+|"[^"]+")>', text, re.DOTALL) is not None
    if isinstance(grammar, ContextFree | Tagged):
        (pattern,) = (pattern for ours, pattern in IN_OTHER_WORDS if ours == grammar)
        return re.fullmatch(pattern, text) is not None
    assert isinstance(grammar, Repeat)
    return all(accepts(grammar.part, part) for part in text.split(";\n"))


def allowed_in(mask: NDArray[np.int32]) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def generate(
    vocabulary: Vocabulary, grammar: Grammar, most: int, random: Random, jump_forward: bool
) -> list[int]:
    """A model that says anything."""
    mask = np.zeros(vocabulary.completer._n_words, np.int32)
    following = Progress(Constraint(encode(grammar), most), jump_forward, mask)
    following.begin(vocabulary, [])
    said: list[int] = []
    while len(said) < most:
        tokens = following.jump_forward_tokens or [random.choice(allowed_in(mask))]
        said += tokens
        if tokens[-1] == END:
            return said[:-1]
        following.advance(tokens)
    return said


def needed(vocabulary: Vocabulary, grammar: Grammar) -> list[int] | None:
    """The tokens of a short text."""
    compiled = Compiled(vocabulary, encode(grammar))
    if compiled.foresight is not None:
        return compiled.foresight.way(compiled.foresight.start)
    return compiled.shortest(200, 0, np.zeros(vocabulary.completer._n_words, np.int32))


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda one: encode(one)[:40])
@pytest.mark.parametrize("jump_forward", [True, False])
def test_a_text_is_completed_within_every_budget_that_has_room(
    vocabulary: Vocabulary, grammar: Grammar, jump_forward: bool
) -> None:
    shortest = needed(vocabulary, grammar)
    assert shortest is not None
    assert accepts(grammar, text_of(vocabulary, shortest))
    for seed in range(12):
        most = max(1, len(shortest)) + seed * 3
        said = generate(vocabulary, grammar, most, Random(seed), jump_forward)
        assert len(said) <= most
        assert accepts(grammar, text_of(vocabulary, said)), (most, text_of(vocabulary, said))


REPORTED: list[Grammar] = [
    Json({"type": "object", "properties": {"x": {"format": name, "type": "string"}}})
    for name in ("email", "uri", "ipv6", "duration")
]
REPORTED += [
    Regex(r"[a-zA-Z0-9|]+@[a-z]+\.com"),
    Json({"type": "integer", "multipleOf": 1013, "minimum": 5000}),
    Json({"type": "string", "pattern": "^(ab)+$", "minLength": 9}),
    Json(
        {
            "$defs": {
                "a": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/b"}},
                "b": {"anyOf": [{"const": 0}, {"$ref": "#/$defs/a"}]},
            },
            "$ref": "#/$defs/a",
        }
    ),
    Regex("(ab{40})?x"),
]


@pytest.mark.parametrize("grammar", REPORTED, ids=lambda one: encode(one)[:60])
def test_hardly_more_room_than_the_shortest_text_needs_is_enough(
    vocabulary: Vocabulary, grammar: Grammar
) -> None:
    shortest = needed(vocabulary, grammar)
    assert shortest is not None
    n = len(shortest)
    for seed in range(20):
        said = generate(vocabulary, grammar, n + seed % 5, Random(seed), seed % 2 == 0)
        assert accepts(grammar, text_of(vocabulary, said)), (n, text_of(vocabulary, said))


@pytest.mark.parametrize("limit", ["token_walks.MAX_STATES", "foresight.MAX_COUNTED"])
def test_where_too_much_would_have_to_be_looked_at_the_shortest_text_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"workers.constraints.{limit}", 5)
    folder, size = save_tiny_tokenizer(tmp_path)
    vocabulary = Vocabulary(folder, size, [END])
    for grammar in (Json(PERSON), REPORTED[0]):
        n = len(needed(vocabulary, grammar) or [])
        for seed in range(5):
            said = generate(vocabulary, grammar, n + 3, Random(seed), True)
            assert accepts(grammar, text_of(vocabulary, said))


def test_what_still_fits_may_be_said(vocabulary: Vocabulary) -> None:
    """Close to the end too, all that leaves room for the rest is open."""
    mask = np.zeros(vocabulary.token_table.n_words, np.int32)
    following = Progress(Constraint(encode(Regex("(a|bcd|efghi)z")), 3), True, mask)
    following.begin(vocabulary, [])
    letters = {text_of(vocabulary, [one]) for one in allowed_in(mask)}
    assert "a" in letters  # then `z`
    assert "e" not in letters  # `fghiz` may have more than two tokens


def test_a_text_beyond_what_is_counted_is_completed_by_its_bytes(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.constraints.foresight.MAX_COST", 20)
    for seed in range(5):
        said = generate(vocabulary, Regex("[abc]{60}x"), 61, Random(seed), True)
        assert re.fullmatch("[abc]{60}x", text_of(vocabulary, said))


def test_a_text_that_cannot_be_completed_is_cut(vocabulary: Vocabulary) -> None:
    said = generate(vocabulary, Regex("[a-z]{500}"), 9, Random(1), True)
    assert len(said) == 9
    assert re.fullmatch("[a-z]+", text_of(vocabulary, said))


def test_free_text_is_not_cut_short(vocabulary: Vocabulary) -> None:
    """Where a text is complete at any place, its budget is used up."""
    said = generate(vocabulary, Regex("[^q]{500}|[a-z]*"), 30, Random(2), True)
    n = [len(generate(vocabulary, Regex("(.|\\n)*"), 30, Random(i), True)) for i in range(20)]
    assert len(said) <= 30
    assert max(n) == 30


def test_a_replay_goes_on_as_before(vocabulary: Vocabulary) -> None:
    mask, again = (np.zeros(vocabulary.completer._n_words, np.int32) for _ in range(2))
    constraint = Constraint(encode(Json(PERSON)), 60)
    following = Progress(constraint, True, mask)
    following.begin(vocabulary, [])
    said: list[int] = []
    random = Random(4)
    for _ in range(12):
        replayed = Progress(constraint, True, again)
        replayed.begin(vocabulary, list(said))
        assert replayed.jump_forward_tokens == following.jump_forward_tokens
        assert (again == mask).all()
        tokens = following.jump_forward_tokens or [random.choice(allowed_in(mask))]
        said += tokens
        if END in tokens:
            break
        following.advance(tokens)


def test_a_replay_near_the_end_goes_on_as_before(vocabulary: Vocabulary) -> None:
    mask, again = (np.zeros(vocabulary.token_table.n_words, np.int32) for _ in range(2))
    n = len(needed(vocabulary, Json(PERSON)) or [])
    for most in (n - 2, n, n + 2):
        constraint = Constraint(encode(Json(PERSON)), most)
        following = Progress(constraint, False, mask)
        following.begin(vocabulary, [])
        random, said = Random(most), list[int]()
        while len(said) < most:
            replayed = Progress(constraint, False, again)
            replayed.begin(vocabulary, list(said))
            assert replayed.jump_forward_tokens == following.jump_forward_tokens
            assert (again == mask).all()
            tokens = following.jump_forward_tokens or [random.choice(allowed_in(mask))]
            said += tokens
            if END in tokens:
                break
            following.advance(tokens)


def test_what_a_text_may_come_to_owe() -> None:
    least = list(openings(Json(PERSON)))
    assert any('"name"' in text and '"age"' in text for text in least)  # a friend
    assert not list(openings(Json({"type": "integer"})))
    assert not list(openings(Json({"type": "object", "additionalProperties": False})))
    assert max(map(len, openings(Regex("x(ab{9})?")))) == 10
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "minItems": 1}}}
    endless["$defs"]["a"]["items"] = {"$ref": "#/$defs/a"}  # type: ignore[index]
    assert all(len(text) <= MOST + 8 for text in openings(Json(endless)))


# -- threads ------------------------------------------------------------------------------------


class Gate:
    """A vocabulary that compiles nothing until it is let go."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.inner = vocabulary
        self.opened = threading.Event()
        self.end_ids = vocabulary.end_ids
        self.completer = vocabulary.completer

    def compiled(self, encoded: str) -> Compiled:
        assert self.opened.wait(10)
        if encoded == encode(Text("panic")):
            raise BaseException("a panic")
        return self.inner.compiled(encoded)


@pytest.fixture
def gate(vocabulary: Vocabulary) -> Iterator[Gate]:
    gate = Gate(vocabulary)
    yield gate
    gate.opened.set()


def constraints_of(gate: Gate) -> Constraints:
    return Constraints(lambda: gate, 32 * gate.completer._n_words)  # type: ignore[arg-type, return-value]


def admit(constraints: Constraints, row: int, grammar: Grammar) -> None:
    constraints.admit(row, Constraint(encode(grammar), 40), [], True)


def test_a_row_is_late_until_its_matcher_is_there(gate: Gate) -> None:
    constraints = constraints_of(gate)
    assert not constraints
    admit(constraints, 3, Json(PERSON))
    assert 3 in constraints
    assert not constraints.still_not_ready(3)  # its prompt may be computed meanwhile
    assert constraints.mask_not_ready(3)
    assert constraints.still_not_ready(3)
    assert not constraints.mask_not_ready(2)
    began = time.monotonic()
    constraints.wait([3], 0.01)
    assert time.monotonic() - began < 5
    assert constraints.mask_not_ready(3)
    gate.opened.set()
    constraints.wait([3], 10)
    assert not constraints.still_not_ready(3)
    assert not constraints.mask_not_ready(3)
    following = constraints.next(3)
    assert following is not None
    assert len(following.jump_forward_tokens) > 1
    constraints.advance({3: following.jump_forward_tokens})
    constraints.wait([3], 10)
    assert not constraints.mask_not_ready(3)
    assert not constraints.error(3)
    constraints.release(3)
    assert not constraints


def test_a_row_whose_mask_took_long_is_known_to_be_slow(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.opened.set()
    constraints = constraints_of(gate)
    admit(constraints, 0, Regex("[a-z]{9}"))
    constraints.wait([0], 10)
    assert not constraints.slow(0)
    assert not constraints.slow(1)
    monkeypatch.setattr("workers.constraints.constraints.SLOW_SECONDS", -1.0)
    constraints.advance({0: gate.inner.tokens("a")})
    constraints.wait([0], 10)
    assert constraints.slow(0)


def test_one_row_fails_alone(gate: Gate) -> None:
    gate.opened.set()
    constraints = constraints_of(gate)
    admit(constraints, 0, Regex("(a"))
    admit(constraints, 1, Json(PERSON))
    admit(constraints, 2, Text("panic"))
    constraints.wait([0, 1, 2], 10)
    assert "grammar" in constraints.error(0)
    assert not constraints.error(1)
    assert "panic" in constraints.error(2)


def test_an_engine_that_fails_once_is_tried_again_from_the_beginning(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.opened.set()
    masks: list[list[int]] = []
    for fails in (False, True):
        constraints = constraints_of(gate)
        admit(constraints, 0, Regex("[a-z]{2}[0-9]{3}"))
        constraints.wait([0], 10)
        if fails:
            advance = Progress.advance

            def failing(self: Progress, tokens: list[int], advance: Any = advance) -> None:
                monkeypatch.setattr(Progress, "advance", advance)
                advance(self, tokens)  # so that its matcher is where it may not stay
                raise MemoryError

            monkeypatch.setattr(Progress, "advance", failing)
        for letter in "ab1":
            constraints.advance({0: gate.inner.tokens(letter)})
            constraints.wait([0], 10)
            assert not constraints.error(0)
            following = constraints.next(0)
            assert following is not None
            masks.append(allowed_in(following.mask))
    assert masks[:3] == masks[3:]


def test_a_vocabulary_that_could_not_be_made_once_is_made_for_the_next_grammar(gate: Gate) -> None:
    gate.opened.set()
    n_made = 0

    def make() -> Vocabulary:
        nonlocal n_made
        n_made += 1
        if n_made == 1:
            raise MemoryError
        return gate.inner

    constraints = Constraints(make, 32 * gate.completer._n_words)
    admit(constraints, 0, Regex("a+"))
    admit(constraints, 1, Regex("b+"))
    constraints.wait([0, 1], 10)
    assert (constraints.error(0), constraints.error(1), n_made) == ("", "", 2)


def test_who_left_is_not_worked_for(gate: Gate) -> None:
    constraints = constraints_of(gate)
    admit(constraints, 0, Json(PERSON))
    constraints.release(0)
    admit(constraints, 0, Regex("a+"))
    gate.opened.set()
    constraints.wait([0], 10)
    following = constraints.next(0)
    assert following is not None
    assert text_of(gate.inner, allowed_in(following.mask)[:1]).startswith("a")


def test_a_tokenizer_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match=r"tokenizer\.json"):
        Vocabulary(tmp_path, 100, [0])


@pytest.mark.parametrize("before", [15, 19])
def test_slow_threads_of_a_nice_server_stay_as_nice(before: int) -> None:
    """Who is not root may not be less nice, and a thread whose start fails ends all of them."""
    after: list[int] = []

    def run() -> None:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, before)
        _be_nice()
        after.append(os.getpriority(os.PRIO_PROCESS, thread))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert before > NICENESS
    assert after == [before]

"""Whatever a model writes: how the text is cut changes nothing, and nothing of it is lost."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.text.tools.samples import FUNCTIONS, NO_CALLS, SAMPLES
from tgi_async.text.tools.events import (
    ArgumentsPiece,
    CallStart,
    Event,
    ProsePiece,
    ThoughtPiece,
    merged,
)
from tgi_async.text.tools.format import Format, Marks, Turn
from tgi_async.text.tools.formats import FORMATS
from tgi_async.text.tools.literals import LiteralNotation
from tgi_async.text.tools.parser import answer_parser
from tgi_async.text.tools.tags import Tags

THINK = Marks("<think>", "</think>")
TEXTS = [sample.text for sample in SAMPLES] + [text for _, text in NO_CALLS]
PIECES = sorted(
    {mark for one in FORMATS for mark in (*one.literals, *one.fences) if mark}
    | {*THINK, '{"name": ', '"add"', ', "arguments": ', '{"a": 1}', "}", "{", "[", "]", ",", ";"}
    | {'"', "\\", "\n", " ", "null", "1e5", "text", "서울", "😀", "```"}
)

formats = st.sampled_from(FORMATS)
texts = st.one_of(
    st.sampled_from(TEXTS),
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.lists(st.sampled_from(TEXTS), max_size=3).map("\n".join),
    st.tuples(st.sampled_from(TEXTS), st.integers(0, 300), st.text(max_size=3)).map(
        lambda given: given[0][: given[1]] + given[2] + given[0][given[1] :]
    ),
)


def read(format: Format, pieces: list[str], opened: bool, parallel: bool) -> list[Event]:
    parser = answer_parser(format, FUNCTIONS, turn=Turn(THINK), opened=opened, parallel=parallel)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged(events + parser.end())


@given(formats, texts, st.lists(st.integers(0, 600), max_size=8), st.booleans(), st.booleans())
def test_how_a_text_is_cut_changes_nothing(
    format: Format, text: str, cuts: list[int], opened: bool, parallel: bool
) -> None:
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    whole = read(format, [text], opened, parallel)
    assert read(format, pieces, opened, parallel) == whole
    assert read(format, list(text), opened, parallel) == whole


@given(formats, texts, st.booleans())
def test_a_call_has_a_name_on_offer_and_comes_before_its_arguments(
    format: Format, text: str, opened: bool
) -> None:
    begun = False
    for event in read(format, [text], opened, True):
        if isinstance(event, CallStart):
            assert event.name in FUNCTIONS
            begun = True
        elif isinstance(event, ArgumentsPiece):
            assert begun


@given(formats, texts)
def test_all_of_a_text_without_calls_is_reported(format: Format, text: str) -> None:
    events = read(format, [text], False, True)
    if (
        not any(isinstance(event, CallStart | ThoughtPiece) for event in events)
        and "<think>" not in text
    ):
        assert "".join(event.text for event in events if isinstance(event, ProsePiece)) == text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(), json_values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(sorted(FUNCTIONS)), arguments), min_size=1, max_size=3)


ENDS = [mark for one in FORMATS if isinstance(one.notation, Tags) for mark in one.notation.literals]
in_tags = st.dictionaries(
    st.text(st.characters(exclude_characters='<>" \t\r\n'), max_size=9),
    st.one_of(st.text(), st.just("\n"), st.sampled_from(TEXTS)).filter(
        lambda text: not any(mark.strip() in text for mark in ENDS)
    ),
)
calls_in_tags = st.lists(st.tuples(st.just("searchTool"), in_tags), min_size=1, max_size=3)


names = st.from_regex("[a-z_][a-z0-9_]{0,8}", fullmatch=True)
texts_in_literals = st.one_of(st.text(), st.sampled_from(TEXTS)).filter(
    lambda one: '<|"|>' not in one
)
values_in_literals = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        texts_in_literals,
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
calls_in_literals = st.lists(
    st.tuples(st.just("searchTool"), st.dictionaries(names, values_in_literals, max_size=3)),
    min_size=1,
    max_size=3,
)


@given(
    st.one_of(
        st.tuples(
            formats.filter(lambda one: isinstance(one.notation, LiteralNotation)), calls_in_literals
        ),
        st.tuples(formats.filter(lambda one: one.notation is None), calls),
        st.tuples(formats.filter(lambda one: isinstance(one.notation, Tags)), calls_in_tags),
    ),
    st.integers(1, 20),
)
def test_what_is_written_is_read(
    written: tuple[Format, list[tuple[str, dict[str, Any]]]], size: int
) -> None:
    format, given_calls = written
    text = format.text(given_calls)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    found: list[list[str]] = []
    for event in read(format, pieces, False, True):
        if isinstance(event, CallStart):
            found.append([event.name, ""])
        else:
            assert isinstance(event, ArgumentsPiece)
            found[-1][1] += event.text
    assert [(name, json.loads(given)) for name, given in found] == given_calls

"""From what models write to prose, thoughts and calls, however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.text.tools.samples import FUNCTIONS, NO_CALLS, SAMPLES, Sample
from tests.text.tools.samples_by_family import FAMILIES, NO_CALLS_OF_FAMILIES
from tgi_async.text.tools.events import (
    ArgumentsPiece,
    CallStart,
    Event,
    ProsePiece,
    ThoughtPiece,
    merged,
)
from tgi_async.text.tools.format import ID, Format, Marks
from tgi_async.text.tools.formats import FORMATS, HERMES, JSON, LLAMA3, format_named
from tgi_async.text.tools.parser import AnswerParser, Held, Parser, answer_parser

THINK = Marks("<think>", "</think>")


def read(parser: AnswerParser, pieces: Sequence[str], *, truncated: bool = False) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged(events + parser.end(truncated=truncated))


def calls_of(events: Sequence[Event]) -> tuple[tuple[str, str], ...]:
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        elif isinstance(event, ArgumentsPiece):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return tuple(calls)


def text_of(
    events: Sequence[Event], kind: type[ProsePiece] | type[ThoughtPiece] = ProsePiece
) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def ways_to_cut(text: str) -> list[list[str]]:
    """Whole, at each place, and into single characters."""
    return [[text], *([text[:at], text[at:]] for at in range(1, len(text))), list(text)]


@pytest.mark.parametrize("sample", [*SAMPLES, *FAMILIES], ids=lambda sample: sample.format)
def test_calls_and_prose_are_distinguished_however_the_text_is_cut(sample: Sample) -> None:
    for pieces in ways_to_cut(sample.text):
        events = read(answer_parser(format_named(sample.format), FUNCTIONS), pieces)
        assert calls_of(events) == sample.calls
        assert text_of(events) == sample.prose


@pytest.mark.parametrize(("name", "text"), [*NO_CALLS, *NO_CALLS_OF_FAMILIES])
def test_what_is_no_call_stays_as_it_is_however_the_text_is_cut(name: str, text: str) -> None:
    for pieces in ways_to_cut(text):
        assert read(answer_parser(format_named(name), FUNCTIONS), pieces) == [ProsePiece(text)]


@pytest.mark.parametrize("sample", [*SAMPLES, *FAMILIES], ids=lambda sample: sample.format)
def test_a_text_cut_off_anywhere_says_the_same_in_one_piece_and_in_many(sample: Sample) -> None:
    for length in range(len(sample.text)):
        text = sample.text[:length]
        whole = read(answer_parser(format_named(sample.format), FUNCTIONS), [text])
        assert read(answer_parser(format_named(sample.format), FUNCTIONS), list(text)) == whole
        # Whatever was begun stays a beginning of what the whole text says.
        for begun, (name, arguments) in zip(calls_of(whole), sample.calls, strict=False):
            assert begun[0] == name
            # A value in tags is known when it is whole; a message without any is an empty one.
            one = format_named(sample.format)
            assert one.notation or one.channels or arguments.startswith(begun[1].rstrip())


TWO_CALLS = [("searchTool", {"query": "a"}), ("add", {"a": 1})]


def cut_off(one: Format, **settings: Any) -> Iterator[tuple[str, list[Event]]]:
    """Calls that are cut off anywhere, and what is read of them, however the text is cut."""
    text = one.text(TWO_CALLS[: 1 if one.one_call else None])
    for length in range(len(text)):
        reported = [
            read(answer_parser(one, FUNCTIONS, **settings), pieces, truncated=True)
            for pieces in ([text[:length]], list(text[:length]))
        ]
        assert reported[0] == reported[1]
        yield text[:length], reported[0]


@pytest.mark.parametrize("held", ["calls", "either"])
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_a_call_that_is_cut_off_leaves_no_marks_in_the_answer(one: Format, held: Held) -> None:
    opening = one.written.begin + one.opening("searchTool").replace(ID, "0")
    named = opening[: opening.index("searchTool") + len("searchTool")]
    whole = [(name, json.dumps(arguments)) for name, arguments in TWO_CALLS]
    for text, events in cut_off(one, held=held):
        calls = calls_of(events)
        if held == "either" and one.bare and not calls:
            assert text_of(events) == text  # it may be a text of the other form
        else:
            assert text_of(events) == ""
        # A call is there once its name is whole, with as much of its arguments as was written.
        assert bool(calls) == (len(text) > len(named))
        for (name, arguments), (expected, written) in zip(calls, whole, strict=False):
            assert name == expected
            assert written.startswith(arguments.rstrip())


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_of_a_free_text_that_is_cut_off_a_call_is_left_out_from_its_mark_on(one: Format) -> None:
    marks = (*one.begin, *one.begin_call)
    for text, events in cut_off(one):
        if one.channels or any(text.startswith(mark) for mark in marks) or calls_of(events):
            assert text_of(events) == ""
        else:
            assert text_of(events) == text


def test_what_ends_where_the_model_ended_it_is_no_call_that_was_cut_off() -> None:
    text = '<tool_call>\n{"name": "searchTool", "argu'
    assert read(Parser(HERMES, FUNCTIONS), [text]) == [ProsePiece(text)]
    text = '<tool_call>\n{"name": "rm_rf", "argu'
    assert read(Parser(HERMES, FUNCTIONS), [text], truncated=True) == [ProsePiece(text)]


def test_thoughts_before_a_text_that_is_held_to_calls() -> None:
    for held in ("calls", "either"):
        for text, thought, calls in (
            ("Well, <tool_call>", "Well, <tool_call>", ()),
            ("Well.</think>\n\n<tool_ca", "Well.", ()),
            (f"Well.</think>\n\n{CALL}", "Well.", (("add", '{"a": 1}'),)),
        ):
            for pieces in ways_to_cut(text):
                parser = Parser(HERMES, FUNCTIONS, thoughts=THINK, opened=True, held=held)
                events = read(parser, pieces, truncated=True)
                assert text_of(events, ThoughtPiece) == thought
                assert (calls_of(events), text_of(events)) == (calls, "")


def test_arguments_come_as_they_are_written() -> None:
    parser = Parser(HERMES, {"add": None})
    assert parser.feed('<tool_call>\n{"name": "add", "arguments": ') == []
    assert parser.feed('{"a": 1') == [CallStart("add"), ArgumentsPiece('{"a": 1')]
    assert parser.feed('2, "b"') == [ArgumentsPiece('2, "b"')]
    assert parser.feed(": 3}}\n</tool") == [ArgumentsPiece(": 3}")]
    assert parser.feed("_call>") == []
    assert parser.end() == []


def test_prose_is_held_back_only_where_a_mark_may_begin() -> None:
    parser = Parser(HERMES, {"add": None})
    assert parser.feed("One < two <tool") == [ProsePiece("One < two")]
    assert parser.feed("s> three") == [ProsePiece(" <tools> three")]


def test_what_the_arguments_break_off_into_goes_with_them() -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": None}}\n</tool_call>\nSo.'
    events = read(Parser(HERMES, FUNCTIONS), [text])
    assert calls_of(events) == (("add", '{"a": None}}\n'),)
    assert text_of(events) == "So."


def test_a_line_break_within_a_string_is_taken() -> None:
    text = '{"name": "searchTool", "parameters": {"query": "one\ntwo"}}'
    [(_, arguments)] = calls_of(read(Parser(LLAMA3, FUNCTIONS), [text]))
    assert json.loads(arguments, strict=False) == {"query": "one\ntwo"}


def test_half_a_character_in_arguments_is_no_call() -> None:
    text = '<tool_call>{"name": "add", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>'
    assert read(Parser(HERMES, FUNCTIONS), [text]) == [ProsePiece(text)]


def test_deeply_nested_arguments_are_taken_as_they_are() -> None:
    nested = '{"a": ' * 100 + "1" + "}" * 100
    text = f'<tool_call>{{"name": "add", "arguments": {nested}}}</tool_call>'
    [(_, arguments)] = calls_of(read(Parser(HERMES, FUNCTIONS), [text]))
    assert arguments.startswith(nested)


def test_only_the_first_call_counts_where_one_is_asked_for() -> None:
    for sample in (*SAMPLES, *FAMILIES):
        for pieces in ([sample.text], list(sample.text)):
            parser = answer_parser(format_named(sample.format), FUNCTIONS, parallel=False)
            events = read(parser, pieces)
            assert calls_of(events) == sample.calls[:1]
            assert text_of(events) == sample.prose


@pytest.mark.parametrize("evil", ['{"arguments": {"a":\n', "{", "[", "<tool_call>", "```json\n"])
def test_a_text_of_beginnings_takes_time_that_grows_with_its_length(evil: str) -> None:
    """A parser that began anew at each of them would not come to an end here."""
    text = evil * (50_000 // len(evil))
    for one in (HERMES, JSON):
        assert read(Parser(one, FUNCTIONS), [text]) == [ProsePiece(text)]


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "opened", "thought", "prose"),
    [
        ("<think>\nWell, 1 < 2.\n\n</think>\n\nYes. ", False, "Well, 1 < 2.", "Yes. "),
        ("\nWell </th</think>Yes.", True, "Well </th", "Yes."),
        ("<think>\nTwice.</think>Yes.", True, "Twice.", "Yes."),
        ("Cut <off", True, "Cut <off", ""),
        ("<think></think>\n\n", False, "", ""),
        ("\n<thin air> </think>", False, "", "\n<thin air> </think>"),
        ("Yes. <think> not at its beginning </think>", False, "", None),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_distinguished_however_the_text_is_cut(
    text: str, opened: bool, thought: str, prose: str | None
) -> None:
    for pieces in ways_to_cut(text):
        parser = Parser(None, thoughts=THINK, opened=opened)
        events = read(parser, pieces)
        assert text_of(events, ThoughtPiece) == thought
        assert text_of(events) == (text if prose is None else prose)


def test_a_call_after_thoughts() -> None:
    text = f"<think>\nA {CALL} perhaps?\n</think>\n\n{CALL}"
    for pieces in ways_to_cut(text):
        events = read(Parser(HERMES, FUNCTIONS, thoughts=THINK), pieces)
        assert text_of(events, ThoughtPiece) == f"A {CALL} perhaps?"
        assert calls_of(events) == (("add", '{"a": 1}'),)
        assert text_of(events) == ""

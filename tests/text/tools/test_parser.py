"""From what models write to prose, thoughts and calls, however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.text.tools.samples import FUNCTIONS, NO_CALLS, SAMPLES, Sample
from tgi_async.text.tools.events import Arguments, CallBegun, Event, Prose, Thought, merged
from tgi_async.text.tools.formats import HERMES, JSON, LLAMA3, format_named
from tgi_async.text.tools.parser import Marks, Parser

THINK = Marks("<think>", "</think>")


def read(parser: Parser, pieces: Sequence[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged(events + parser.end())


def calls_of(events: Sequence[Event]) -> tuple[tuple[str, str], ...]:
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallBegun):
            calls.append((event.name, ""))
        elif isinstance(event, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return tuple(calls)


def text_of(events: Sequence[Event], kind: type[Prose] | type[Thought] = Prose) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def ways_to_cut(text: str) -> list[list[str]]:
    """Whole, at each place, and into single characters."""
    return [[text], *([text[:at], text[at:]] for at in range(1, len(text))), list(text)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.format)
def test_calls_and_prose_are_told_apart_however_the_text_is_cut(sample: Sample) -> None:
    for pieces in ways_to_cut(sample.text):
        events = read(Parser(format_named(sample.format), FUNCTIONS), pieces)
        assert calls_of(events) == sample.calls
        assert text_of(events) == sample.prose


@pytest.mark.parametrize(("name", "text"), NO_CALLS)
def test_what_is_no_call_stays_as_it_is_however_the_text_is_cut(name: str, text: str) -> None:
    for pieces in ways_to_cut(text):
        assert read(Parser(format_named(name), FUNCTIONS), pieces) == [Prose(text)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.format)
def test_a_text_cut_off_anywhere_says_the_same_in_one_piece_and_in_many(sample: Sample) -> None:
    for length in range(len(sample.text)):
        text = sample.text[:length]
        whole = read(Parser(format_named(sample.format), FUNCTIONS), [text])
        assert read(Parser(format_named(sample.format), FUNCTIONS), list(text)) == whole
        # Whatever was begun stays a beginning of what the whole text says.
        for begun, (name, arguments) in zip(calls_of(whole), sample.calls, strict=False):
            assert begun[0] == name
            # A value in tags is known when it is whole.
            assert sample.format == "qwen3_coder" or arguments.startswith(begun[1].rstrip())


def test_arguments_come_as_they_are_written() -> None:
    parser = Parser(HERMES, {"add": None})
    assert parser.feed('<tool_call>\n{"name": "add", "arguments": ') == []
    assert parser.feed('{"a": 1') == [CallBegun("add"), Arguments('{"a": 1')]
    assert parser.feed('2, "b"') == [Arguments('2, "b"')]
    assert parser.feed(": 3}}\n</tool") == [Arguments(": 3}")]
    assert parser.feed("_call>") == []
    assert parser.end() == []


def test_prose_is_held_back_only_where_a_mark_may_begin() -> None:
    parser = Parser(HERMES, {"add": None})
    assert parser.feed("One < two <tool") == [Prose("One < two")]
    assert parser.feed("s> three") == [Prose(" <tools> three")]


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
    assert read(Parser(HERMES, FUNCTIONS), [text]) == [Prose(text)]


def test_deeply_nested_arguments_are_taken_as_they_are() -> None:
    nested = '{"a": ' * 100 + "1" + "}" * 100
    text = f'<tool_call>{{"name": "add", "arguments": {nested}}}</tool_call>'
    [(_, arguments)] = calls_of(read(Parser(HERMES, FUNCTIONS), [text]))
    assert arguments.startswith(nested)


def test_only_the_first_call_counts_where_one_is_asked_for() -> None:
    for sample in SAMPLES:
        for pieces in ([sample.text], list(sample.text)):
            parser = Parser(format_named(sample.format), FUNCTIONS, parallel=False)
            events = read(parser, pieces)
            assert calls_of(events) == sample.calls[:1]
            assert text_of(events) == sample.prose


@pytest.mark.parametrize("evil", ['{"arguments": {"a":\n', "{", "[", "<tool_call>", "```json\n"])
def test_a_text_of_beginnings_takes_time_that_grows_with_its_length(evil: str) -> None:
    """A parser that began anew at each of them would not come to an end here."""
    text = evil * (50_000 // len(evil))
    for one in (HERMES, JSON):
        assert read(Parser(one, FUNCTIONS), [text]) == [Prose(text)]


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
def test_thoughts_are_told_apart_however_the_text_is_cut(
    text: str, opened: bool, thought: str, prose: str | None
) -> None:
    for pieces in ways_to_cut(text):
        parser = Parser(None, thinking=THINK, opened=opened)
        events = read(parser, pieces)
        assert text_of(events, Thought) == thought
        assert text_of(events) == (text if prose is None else prose)


def test_a_call_after_thoughts() -> None:
    text = f"<think>\nA {CALL} perhaps?\n</think>\n\n{CALL}"
    for pieces in ways_to_cut(text):
        events = read(Parser(HERMES, FUNCTIONS, thinking=THINK), pieces)
        assert text_of(events, Thought) == f"A {CALL} perhaps?"
        assert calls_of(events) == (("add", '{"a": 1}'),)
        assert text_of(events) == ""

"""Thoughts, preambles and answers of gpt-oss, however the text is cut."""

from __future__ import annotations

import pytest

from tests.text.tools.samples import FUNCTIONS
from tests.text.tools.test_parser import calls_of, read, text_of, ways_to_cut
from tgi_async.text.tools.events import ProsePiece, ThoughtPiece
from tgi_async.text.tools.harmony import ChannelParser

THOUGHT = "<|channel|>analysis<|message|>Cold, < 3?<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "thought", "prose", "calls"),
    [
        (f"{THOUGHT}<|channel|>final<|message|>It is.<|return|>", "Cold, < 3?", "It is.", ()),
        (f"{THOUGHT}{THOUGHT}{CALL}", "Cold, < 3?Cold, < 3?", "", (("add", '{"a": 1}'),)),
        (
            f"{THOUGHT}<|channel|>commentary<|message|>I add.<|end|><|start|>assistant{CALL}",
            "Cold, < 3?",
            "I add.",
            (("add", '{"a": 1}'),),
        ),
        (f"{CALL}<|start|>assistant{CALL}", "", "", (("add", '{"a": 1}'),) * 2),
        (
            "<|channel|>commentary to=get_time json<|message|><|call|>",
            "",
            "",
            (("get_time", "{}"),),
        ),
        ("<|message|>So.", "", "So.", ()),
        ("<|start|>user<|message|>So.<|end|>", "", "<|start|>user<|message|>So.", ()),
        ("<|end|><|end|>", "", "", ()),
        ("<|channel|>" * 40, "", "<|channel|>" * 40, ()),
        ("", "", "", ()),
    ],
)
def test_messages_are_distinguished(
    text: str, thought: str, prose: str, calls: tuple[tuple[str, str], ...]
) -> None:
    for pieces in ways_to_cut(text):
        events = read(ChannelParser(FUNCTIONS), pieces)
        assert text_of(events, ThoughtPiece) == thought
        assert text_of(events, ProsePiece) == prose
        assert calls_of(events) == calls


def test_what_is_cut_off_shows_no_header() -> None:
    text = f"{THOUGHT}<|channel|>commentary<|message|>I add.<|end|><|start|>assistant{CALL}"
    for length in range(len(text)):
        for pieces in ([text[:length]], list(text[:length])):
            events = read(ChannelParser(FUNCTIONS), pieces, truncated=True)
            assert "Cold, < 3?".startswith(text_of(events, ThoughtPiece))
            assert "I add.".startswith(text_of(events, ProsePiece))
            for name, arguments in calls_of(events):
                assert name == "add"
                assert '{"a": 1}'.startswith(arguments)
        assert bool(calls_of(events)) == ("to=functions.add " in text[:length])


def test_without_tools_a_call_is_a_message_like_any_other() -> None:
    assert read(ChannelParser(), [CALL]) == [ProsePiece(CALL)]


def test_only_the_first_call_counts_where_one_is_asked_for() -> None:
    events = read(ChannelParser(FUNCTIONS, parallel=False), [f"{CALL}<|start|>assistant{CALL}"])
    assert calls_of(events) == (("add", '{"a": 1}'),)

"""Grammars that force calls: what they let through is read back as those calls."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.api.tiny_tokenizer import tiny_inner
from tests.text.tools.samples import marks_of
from tgi_async.grammar.grammar import Grammar, Json, Special, Text, decode, encode
from tgi_async.grammar.grammar import Sequence as InOrder
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.text.tools import harmony
from tgi_async.text.tools.constraint import (
    after_thoughts,
    arguments_schema,
    calls_or,
    forced_calls,
    held_calls,
    splitter,
)
from tgi_async.text.tools.events import ArgumentsPiece, CallStart, ProsePiece, ThoughtPiece, merged
from tgi_async.text.tools.format import Format, Marks, Turn
from tgi_async.text.tools.formats import FORMATS, HERMES, JSON, QWEN3_CODER
from tgi_async.text.tools.harmony import FINAL, HARMONY
from tgi_async.text.tools.notation import NotForced, Terms
from tgi_async.text.tools.parser import answer_parser
from tgi_async.text.tools.tgi import NO_TOOL, CallReader, call_of, call_of_one
from workers.grammar.check_process import check
from workers.grammar.engine import GrammarError
from workers.grammar.llguidance_engine import LlguidanceEngine

THINK = Marks("<think>", "</think>")
WEATHER = arguments_schema(
    {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
)
FUNCTIONS = [("get_weather", WEATHER), ("get_time", arguments_schema(None))]
CALLS: list[tuple[str, Any]] = [
    ("get_weather", {"city": "Säo 서울", "days": 3}),
    ("get_time", {}),
    ("get_weather", {"city": '"'}),
]


class Held:
    """A tokenizer of bytes with some special tokens, and texts held to grammars."""

    def __init__(self, folder: Path, special: tuple[str, ...] = ()) -> None:
        inner = tiny_inner()
        inner.add_special_tokens(list(special))
        inner.save(str(folder / "tokenizer.json"))
        self.tokenizer = Tokenizer(inner)
        self._engine = LlguidanceEngine(folder / "tokenizer.json", self.tokenizer.vocab_size, [257])

    def normal(self, grammar: Grammar) -> Grammar:
        """The grammar as workers get it."""
        found = check(self._engine, -(-self.tokenizer.vocab_size // 32), encode(grammar))
        assert not found.refusal
        return decode(found.grammar)

    @property
    def terms_of(self) -> Terms:
        return splitter([self.tokenizer.token_text(id) for id in self.tokenizer.special_ids])

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether the whole text follows the grammar."""
        matcher = self._engine.matcher(grammar)
        try:
            matcher.advance(self.tokenizer.encode(text, add_special_tokens=False))
        except GrammarError:
            return False
        return matcher.complete


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held(tmp_path)


@pytest.mark.parametrize("marks_are", ["special tokens", "text"])
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_what_is_forced_is_what_the_parser_reads(
    tmp_path: Path, one: Format, marks_are: str
) -> None:
    special = tuple(marks_of(one)) if marks_are == "special tokens" else ()
    held = Held(tmp_path, special)
    grammar = forced_calls(one, FUNCTIONS, held.terms_of)
    for calls in (CALLS[:1], CALLS[: 1 if one.one_call else None]):
        text = one.text(calls)
        assert held.accepts(grammar, text)
        parser = answer_parser(one, dict(FUNCTIONS))
        events = merged(parser.feed(text) + parser.end())
        reported = [
            piece
            for name, arguments in calls
            for piece in (
                CallStart(name),
                ArgumentsPiece(json.dumps(arguments, ensure_ascii=False)),
            )
        ]
        assert events == reported


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_nothing_else_is_let_through(held: Held, one: Format) -> None:
    grammar = forced_calls(one, FUNCTIONS, held.terms_of)
    for text in (
        "",
        "No.",
        "So " + one.text(CALLS[:1]),
        one.text([("rm_rf", {})]),
        one.text([("get_weather", {})]),
        one.text([("get_weather", {"city": "a", "country": "b"})]),
        one.text([("get_weather", {"city": "a", "days": "b"})]),
        one.text(CALLS[:1])[:-1],
    ):
        assert not held.accepts(grammar, text)


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_exactly_one_call(held: Held, one: Format) -> None:
    grammar = forced_calls(one, FUNCTIONS, held.terms_of, most=1)
    assert held.accepts(grammar, one.text(CALLS[:1]))
    assert held.accepts(grammar, one.text(CALLS[1:2]))
    assert not held.accepts(grammar, one.text(CALLS[:2]))


NATION = Json(
    {
        "type": "object",
        "properties": {"nation": {"type": "string"}},
        "required": ["nation"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("marks_are", ["special tokens", "text"])
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_calls_or_a_text_of_a_form(tmp_path: Path, one: Format, marks_are: str) -> None:
    special = tuple(marks_of(one)) if marks_are == "special tokens" else ()
    held = Held(tmp_path, special)
    functions = [("get_weather", WEATHER), ("get_time", None), ("get_place", None)]
    before = FINAL.begin if one.channels else ""
    grammar = calls_or(one, functions, InOrder([*held.terms_of(before), NATION]), held.terms_of)
    free = [("get_time", {"at": "now"}), ("get_place", {})]
    for calls in (CALLS[:1], free[:1], free[1:], *([] if one.one_call else [free + CALLS])):
        assert held.accepts(grammar, one.text(calls))
    for text in (
        "",
        "So ",
        'So {"nation": "Peru"}',
        f'{{"nation": "Peru"}}{one.text(free)}',
        f'{one.text(free)}{{"nation": "Peru"}}',
        one.text([("rm_rf", {})]),
        one.text([("get_weather", {"days": 3})]),
        '{"name": "Peru"}',
        "{}",
    ):
        assert not held.accepts(grammar, text)
    answer = f'{{"nation": {json.dumps(one.text(free), ensure_ascii=False)}}}'
    if one.channels:
        assert held.accepts(grammar, before + '{"nation": "Peru"}')
        return
    if not special:  # a special token is no part of a string
        assert held.accepts(grammar, answer)
    for pieces in ([answer], list(answer)):
        parser = answer_parser(one, dict(functions), held="either")
        events = [event for piece in pieces for event in parser.feed(piece)]
        assert merged(events + parser.end()) == [ProsePiece(answer)]


@pytest.mark.parametrize("marks_are", ["special tokens", "text"])
@pytest.mark.parametrize(
    "one", [one for one in FORMATS if not one.channels], ids=lambda one: one.name
)
def test_a_free_text_whose_calls_are_held(tmp_path: Path, one: Format, marks_are: str) -> None:
    held = Held(tmp_path, (*marks_of(one), *THINK) if marks_are == "special tokens" else ())
    functions = [("get_weather", WEATHER), ("get_time", None)]
    grammar = held_calls(one, functions, held.terms_of, turn=Turn(THINK))
    call, free = one.text(CALLS[:1]), one.text([("get_time", {"at": "now"})])
    mention = "" if marks_are == "special tokens" else one.begin[0] if one.begin else call
    thought = f"<think>\nShall I {mention}?\n</think>\n\n"
    for text in ("", "No: 1 < 2.", call, free, f"So: {call}", thought, f"{thought}So {call}"):
        assert held.accepts(grammar, text)
        parser = answer_parser(one, dict(functions), turn=Turn(THINK))
        begun = [event for event in parser.feed(text) if isinstance(event, CallStart)]
        assert len(begun) == text.removeprefix(thought).count("get_")
    for arguments in ({"city": "a", "days": "x"}, {"days": 3}, {"city": "a", "country": "b"}):
        assert not held.accepts(grammar, f"So: {one.text([('get_weather', arguments)])}")
    if not one.bare:
        assert not held.accepts(grammar, one.text([("rm_rf", {})]))
        assert not held.accepts(grammar, call[:-1])


@pytest.mark.parametrize("special", [tuple(marks_of(HARMONY)), ()], ids=["tokens", "text"])
def test_calls_in_harmony_are_held(tmp_path: Path, special: tuple[str, ...]) -> None:
    held = Held(tmp_path, special)
    functions = [("get_weather", WEATHER), ("get_time", None)]
    calls = forced_calls(HARMONY, functions, held.terms_of)
    grammar = harmony.held_calls(calls, held.terms_of)
    call = HARMONY.text(CALLS[:1])
    thought = "<|channel|>analysis<|message|>Why?<|end|><|start|>assistant"
    words = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    final = "<|channel|>final<|message|>It is cold."
    for text in (call, final, f"{thought}{call}", f"{thought}{words}{call}", f"{thought}{final}"):
        assert held.accepts(grammar, text)
    for text in ("", thought, "It is cold.", call.replace("Säo", 'x", "y": "')):
        assert not held.accepts(grammar, text)
    forced = harmony.after_thoughts(calls, held.terms_of)
    for text in (call, f"{thought}{call}"):
        assert held.accepts(forced, text)
    assert not held.accepts(forced, f"{thought}{final}")


def test_only_one_call_beside_a_form(held: Held) -> None:
    for one in (HERMES, JSON):
        grammar = calls_or(one, [("get_time", None)], NATION, held.terms_of, most=1)
        assert held.accepts(grammar, one.text([("get_time", {})]))
        assert not held.accepts(grammar, one.text([("get_time", {})] * 2))


def test_references_of_arguments_lead_into_their_schema(held: Held) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#"}},
        "$defs": {"n": {"type": "integer"}},
        "additionalProperties": False,
    }
    for one in (HERMES, JSON):
        grammar = held.normal(calls_or(one, [("f", schema)], NATION, held.terms_of))
        assert held.accepts(grammar, one.text([("f", {"a": 1, "b": {"a": 2}})]))
        assert not held.accepts(grammar, one.text([("f", {"a": 1, "b": {"a": "x"}})]))


@pytest.mark.parametrize("special", [(), THINK], ids=["marks as text", "marks as tokens"])
def test_thoughts_come_first_where_they_have_begun(
    tmp_path: Path, special: tuple[str, ...]
) -> None:
    held = Held(tmp_path, special)
    call = HERMES.text(CALLS[:1])
    forced = forced_calls(HERMES, FUNCTIONS, held.terms_of)
    grammar = after_thoughts(forced, THINK, held.terms_of)
    text = f"Well, {{1 < 2\n</think>\n\n{call}"
    assert held.accepts(grammar, text)
    assert held.accepts(grammar, f"</think>{call}")
    assert not held.accepts(grammar, call)
    assert not held.accepts(grammar, "Well</think>\n\nNo.")
    parser = answer_parser(HERMES, {"get_weather": WEATHER}, turn=Turn(THINK), opened=True)
    assert merged(parser.feed(text) + parser.end())[:2] == [
        ThoughtPiece("Well, {1 < 2"),
        CallStart("get_weather"),
    ]


def test_marks_are_tokens_where_the_tokenizer_has_them() -> None:
    grammar = forced_calls(HERMES, FUNCTIONS[1:], splitter(["<tool_call>"]), most=1)
    assert isinstance(grammar, InOrder)
    call = grammar.parts[0]
    assert isinstance(call, InOrder)
    assert call.parts == [
        Special("<tool_call>"),
        Text('\n{"name": "get_time", "arguments": '),
        Json({"type": "object", "properties": {}, "additionalProperties": False}),
        Text("}\n</tool_call>"),
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {}, "patternProperties": {"a": {}}},
        {"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
        {"type": "object", "allOf": [{"properties": {"a": {}}}]},
        True,
    ],
)
def test_a_schema_that_says_what_else_there_may_be_is_kept(schema: Any) -> None:
    assert arguments_schema(schema) == schema


IN_TAGS = {
    "properties": {
        "kind": {"enum": ["a", "b"], "description": "A kind."},
        "code": {"type": "string", "minLength": 2, "maxLength": 3},
        "at": {"$ref": "#/$defs/place"},
    },
    "required": ["code"],
    "$defs": {"place": {"type": "array", "items": {"type": "integer"}}},
}


def test_values_in_tags_are_held_to_their_schemas(held: Held) -> None:
    grammar = forced_calls(QWEN3_CODER, [("f", arguments_schema(IN_TAGS))], held.terms_of)
    for arguments in (
        {"code": "abc"},
        {"kind": "a", "code": "ab", "at": [1, 2]},
        {"code": "가나", "at": []},
    ):
        text = QWEN3_CODER.text([("f", arguments)])
        assert held.accepts(grammar, text)
        parser = answer_parser(QWEN3_CODER, {"f": IN_TAGS})
        _, reported = merged(parser.feed(text) + parser.end())
        assert isinstance(reported, ArgumentsPiece)
        assert json.loads(reported.text) == arguments
    for arguments in (
        {},
        {"kind": "c", "code": "ab"},
        {"code": "a"},
        {"code": "abcd"},
        {"code": "a<b"},
        {"code": "ab", "at": ["x"]},
        {"code": "ab", "more": "x"},
    ):
        assert not held.accepts(grammar, QWEN3_CODER.text([("f", arguments)]))


@pytest.mark.parametrize(
    ("schema", "reported"),
    [
        (
            {"properties": {"a": {"type": "string", "pattern": "^a"}}},
            "`a`, a string with `pattern`",
        ),
        (
            {"properties": {"a": {"type": ["string", "array"]}}},
            "`a`, which is a string or something",
        ),
        ({"anyOf": [{}]}, "`anyOf` of the parameters"),
    ],
)
def test_what_cannot_be_forced_in_tags_is_refused_by_name(schema: Any, reported: str) -> None:
    with pytest.raises(NotForced, match=re.escape(reported)):
        forced_calls(QWEN3_CODER, [("f", schema)], splitter([]))


def test_in_tgis_way_an_answer_is_a_call_of_one(held: Held) -> None:
    functions: list[dict[str, Any]] = [
        {"name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}}},
        {"name": "get_time"},
        NO_TOOL["function"],
    ]
    grammar = call_of_one(functions)
    for name, arguments in (
        ("get_weather", '{"city": "Seoul"}'),
        ("get_weather", "{}"),
        ("get_time", "{}"),
        ("no_tool", '{"content": "Hi"}'),
    ):
        members = f", {arguments[1:-1]}" if arguments != "{}" else ""
        text = f'{{"function": {{"_name": "{name}"{members}}}}}'
        assert held.accepts(grammar, text)
        assert call_of(text) == (name, json.dumps(json.loads(arguments), separators=(",", ":")))
        for pieces in ([text], list(text), [text[:30], text[30:]]):
            reader = CallReader()
            events = merged([event for piece in pieces for event in reader.feed(piece)])
            assert events == [CallStart(name), ArgumentsPiece(arguments)]
    assert not held.accepts(grammar, '{"function": {"_name": "no_tool"}}')
    assert not held.accepts(grammar, '{"function": {"_name": "get_time", "a": 1}}')


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("", "Expecting value"),
        ('{"function": {"_name": "a", "b": ', "Expecting value"),
        ("[]", "no call"),
        ('{"function": 1}', "no call"),
        ('{"function": {"_name": 1}}', "the name is 1"),
    ],
)
def test_a_call_that_is_cut_off_is_reported(text: str, reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        call_of(text)

from __future__ import annotations

import pytest

from tests.grammar.engines import allowed, end_id, engine_of, follows, tokenizer, vocab_size
from tests.grammar.test_llguidance_engine import FOLLOWED
from tgi_async.grammar.grammar import Grammar, Json, Regex, Special, Text
from workers.grammar.engine import GrammarError

pytest.importorskip("xgrammar")
from workers.grammar.structural_tag import READS_LARK


@pytest.mark.parametrize(("grammar", "good", "bad"), FOLLOWED, ids=lambda it: str(it)[:60])
def test_terms_are_followed(grammar: Grammar, good: list[str], bad: list[str]) -> None:
    engine = engine_of("xgrammar")
    if not READS_LARK and "start" in str(grammar):
        with pytest.raises(GrammarError, match="it is in Lark, and this version of xgrammar"):
            engine.matcher(grammar)
        return
    for text in good:
        assert follows(engine, grammar, text), text
    for text in bad:
        assert not follows(engine, grammar, text), text


SPACES = [
    (r"a\sb", ["a b", "a\tb"], ["a\u2003b", "a\xa0b", "asb"]),
    (r"\S+", ["ab\u2003é", "\xa0"], [" ", "a b"]),
    (r"[\s,]", [" ", ",", "\n"], ["\u2003", "\xa0", "s"]),
    (r"[^\s]", ["a", "\u2003", "\xa0"], [" ", "\t"]),
    (r"[\S]", ["a", "\u2003"], [" "]),
    (r"[^a\S]", [" ", "\n"], ["a", "b", "\u2003", "\xa0"]),
    (r"\\s", ["\\s"], ["\\ ", " "]),
    (r"[\]\s]", ["]", " "], ["\u2003"]),
]


@pytest.mark.parametrize(("pattern", "good", "bad"), SPACES)
def test_spaces_are_those_of_ascii(pattern: str, good: list[str], bad: list[str]) -> None:
    engine = engine_of("xgrammar")
    for text in good:
        assert follows(engine, Regex(pattern), text), text
    for text in bad:
        assert not follows(engine, Regex(pattern), text), text


def test_spaces_of_a_pattern_in_a_schema_are_those_of_ascii() -> None:
    engine, grammar = engine_of("xgrammar"), Json({"type": "string", "pattern": r"^a\sb$"})
    assert follows(engine, grammar, '"a b"')
    assert not follows(engine, grammar, '"a\u2003b"')
    assert not follows(engine, grammar, '"a\xa0b"')


REFUSED = [
    (
        {"allOf": [{"pattern": "a"}], "type": "string"},
        "keyword `allOf` at # is not supported by xgrammar: it does not know it",
    ),
    (
        {"properties": {"a": {"patternProperties": {"^a": True}}}},
        "keyword `patternProperties` at #/properties/a is not supported by xgrammar",
    ),
    (
        {"type": "number", "multipleOf": 2},
        "keyword `multipleOf` at # is not supported by xgrammar: for other than integers",
    ),
    (
        {"type": "string", "pattern": "a", "maxLength": 3},
        "keyword `maxLength` at # is not supported by xgrammar: beside `pattern`",
    ),
    (
        {"properties": {"a": True}, "additionalProperties": {"type": "null"}},
        "keyword `additionalProperties` at # is not supported by xgrammar: beside `properties`",
    ),
    (
        {"type": "string", "pattern": "^a|b$"},
        "keyword `pattern` at # is not supported by xgrammar: an anchor beside `|`",
    ),
    ({"type": "string", "pattern": "(?=a)"}, "looking around is not supported in a regular"),
    ({"type": "string", "pattern": "a$b"}, "`$` inside a regular expression is not supported"),
]


@pytest.mark.parametrize(("schema", "why"), REFUSED, ids=lambda it: str(it)[:60])
def test_what_it_would_leave_out_is_refused_by_name(schema, why):
    with pytest.raises(GrammarError) as refused:
        engine_of("xgrammar").matcher(Json(schema))
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Regex("a("), "Regex parsing error at position 3: The parenthesis is not closed."),
        (Special("<nothing>"), "the tokenizer has no special token '<nothing>'"),
    ],
)
def test_a_wrong_grammar_is_told(grammar, why):
    with pytest.raises(GrammarError) as refused:
        engine_of("xgrammar").matcher(grammar)
    assert str(refused.value) == why


def test_patterns_may_match_in_the_middle():
    engine = engine_of("xgrammar")
    schema = {"type": "string", "pattern": "[0-9]"}
    assert follows(engine, Json(schema), '"a1b"')
    assert not follows(engine, Json(schema), '"ab"')


def test_an_object_that_names_properties_has_no_others():
    engine = engine_of("xgrammar")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": False}}
    assert follows(engine, Json(schema), '{"a": 1}')
    for text in ('{"c": 1}', '{"\\u0061": "x"}', '{"b": 1}'):
        assert not follows(engine, Json(schema), text)


@pytest.mark.parametrize("pattern", ["(.|\n)*", "a(.|\n)*"])
def test_nothing_behind_the_last_token_is_let_in(pattern: str) -> None:
    matcher = engine_of("xgrammar").matcher(Regex(pattern))
    assert max(allowed(matcher)) < vocab_size()


def test_the_end_of_the_text_is_the_token_that_ends_it():
    matcher = engine_of("xgrammar").matcher(Regex("ab?"))
    assert end_id() not in allowed(matcher)
    matcher.advance(tokenizer().encode("a").ids)
    assert (matcher.complete, matcher.ended) == (True, False)
    matcher.advance([end_id()])
    assert (matcher.complete, matcher.ended) == (True, True)
    assert allowed(matcher) == [end_id()]


def test_a_text_that_can_not_go_on_has_ended():
    matcher = engine_of("xgrammar").matcher(Text("a"))
    assert not matcher.ended
    matcher.advance(tokenizer().encode("a").ids)
    assert (matcher.complete, matcher.ended) == (True, True)


def test_a_token_that_is_not_allowed_is_refused():
    matcher = engine_of("xgrammar").matcher(Json({"type": "integer"}))
    with pytest.raises(GrammarError, match="is not allowed here"):
        matcher.advance(tokenizer().encode("x").ids)


def test_a_copy_goes_its_own_way():
    matcher = engine_of("xgrammar").matcher(Regex("xy|xz"))
    copy = matcher.copy()
    copy.advance(tokenizer().encode("x").ids)
    assert allowed(matcher) == tokenizer().encode("x").ids
    assert allowed(copy) == tokenizer().encode("yz").ids

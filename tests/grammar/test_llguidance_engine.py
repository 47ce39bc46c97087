from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.grammar.engines import accepts, allowed, end_id, engine_of, follows, tokenizer, walk
from tgi_async.grammar.grammar import (
    Choice,
    ContextFree,
    Grammar,
    Json,
    Prose,
    Regex,
    Repeat,
    Sequence,
    Special,
    Tag,
    Tagged,
    Text,
)
from workers.grammar.engine import GrammarError

START = "<|im_start|>"
NUMBER = Json({"type": "integer"})
CALL = Sequence([Prose("<call>"), Json({"type": "object"}), Text("</call>")])

EBNF = 'root ::= "a" digit+ ("-" root)?\ndigit ::= [0-9]'
LARK = 'start: "a" /[0-9]/+ ("-" start)?'
PARENTHESES = """?start: sum
sum: NUMBER | sum "+" sum | "(" sum ")"
%import common.NUMBER
%ignore / +/"""
TAGS = [
    Tag("<f=", "<f=one>", NUMBER, "</f>"),
    Tag("<f=", "<f=two>", Regex("a+"), "</f>"),
    Tag("[", "[", Choice([Text("x"), Text("y")]), "]"),
]

CLIENTS: list[tuple[Grammar, list[str], list[str]]] = [
    (ContextFree(EBNF), ["a1", "a12-a3-a4"], ["", "a", "a1-", "a1a1"]),
    (ContextFree(LARK), ["a1", "a12-a3-a4"], ["", "a", "a1-", "a1a1"]),
    (ContextFree(PARENTHESES), ["1", "(1 + 2.5)+3", "((7))"], ["1+", "(1", "a"]),
    (
        Sequence([Text("so: "), ContextFree(EBNF), Text("."), ContextFree(LARK)]),
        ["so: a1.a2", "so: a1-a2.a3"],
        ["so: a1.", "a1.a2", "so: .a2"],
    ),
    (
        Tagged(TAGS),
        ["", "a < b <f", "<f=one>1</f>", "so <f=two>aa</f> and [x][y] or <f=one>2</f>."],
        ["<f=", "<f=one>", "<f=one>a</f>", "a [z]", "[x] <f=two>b</f>"],
    ),
    (Tagged(TAGS, begins=True), ["[x]", "<f=one>1</f> and [y]"], ["", "so [x]", "[x] [z]"]),
    (Tagged(TAGS, ends=True), ["", "so", "so [x]"], ["so [x] ", "[x][y]"]),
    (Tagged(TAGS, begins=True, ends=True), ["[x]", "<f=two>a</f>"], ["", "so [x]", "[x] "]),
]
"""In what clients write; both engines follow them."""

FOLLOWED: list[tuple[Grammar, list[str], list[str]]] = [
    (Json(True), ["1", '{"a": [1, 2]}', '"x"', "null"], ["", "{", '{"a":1}', '{ "a": 1}']),
    (Regex("a+b"), ["ab", "aab"], ["", "a", "abb"]),
    (Regex("^a|b$"), ["a", "b"], ["ab"]),
    (Regex(""), [""], ["a"]),
    (Regex("a/b\nc"), ["a/b\nc"], ["a/b c"]),
    (Regex(r"\d\w\s"), ["1a "], ["\u0661a ", "1é ", "1a\u2003"]),
    (Regex("."), ["한", "é", "🙂"], ["\n", "ab"]),
    (Text('\\x41"\\\n/é'), ['\\x41"\\\n/é'], ['A"\\\n/é', ""]),
    (Text(""), [""], ["a"]),
    (Special(START), [START], ["a", "<|im_star|>"]),
    (Prose("<call>"), ["<call>", "a < b <call>"], ["", "a", "<call>b", "a<call>b<call>"]),
    (Sequence([Text("a"), NUMBER, Text("b")]), ["a1b"], ["ab", "1"]),
    (Sequence([]), [""], ["a"]),
    (Sequence([Special(START), NUMBER]), [f"{START}12"], ["12", START]),
    (Choice([Text("a"), Sequence([NUMBER, Text("!")])]), ["a", "7!"], ["", "7", "a7!"]),
    (Repeat(NUMBER, separator=", "), ["", "1", "1, 2", "1, 2, 3"], ["1,", "1,2", ", 1"]),
    (Repeat(NUMBER, 2, 3, "-"), ["1-2", "1-2-3"], ["1", "1-2-3-4"]),
    (Repeat(Text("ab"), 1, 2), ["ab", "abab"], ["", "ababab"]),
    (Repeat(Text("ab"), 0, 0), [""], ["ab"]),
    (Repeat(Sequence([Text("a"), Text("b")]), 2), ["abab", "ababab"], ["ab", "aab"]),
    (
        Sequence([Repeat(CALL), Regex("(?s:.*)")]),
        ["", "prose", 'so <call>{"a": 1}</call>', "x <call>{}</call> y <call>{}</call> z"],
        ["<call>", "<call>x", "<call>{}", "a <call>{}</call> <call>1"],
    ),
    (
        Sequence(
            [
                Repeat(Prose("</t>", begin="<t>"), 0, 1),
                Repeat(
                    Choice(
                        [
                            Sequence([Prose("<a>", unlike="<t>"), NUMBER]),
                            Sequence([Prose("<b(>", unlike="<t>"), Text("!")]),
                        ]
                    )
                ),
                Regex("(?s:.*)"),
            ]
        ),
        ["", "x", "<", "<t>so <a> and <b(> </t>", "<t></t> x <a>1<b(>! <a>23 y", "<x> <a>4"],
        ["<a>", "x <a>b", "<t></t><a>", "<b(>", "<a>1 <b(>?"],
    ),
    *CLIENTS,
]


@pytest.mark.parametrize(("grammar", "good", "bad"), FOLLOWED, ids=lambda it: str(it)[:60])
def test_terms_are_followed(grammar: Any, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert follows(engine_of(), grammar, text), text
    for text in bad:
        assert not follows(engine_of(), grammar, text), text


REFUSED = [
    (Regex("a("), "unclosed group, at '(' (character 2)"),
    (Regex("x(?=a)b"), "look-around, including look-ahead and look-behind, is not supported, at"),
    (Regex(r"(a)\1"), r"backreferences are not supported, at '\\1' (character 4)"),
    (Regex("[z-a]"), "invalid character class range, the start must be <= the end, at 'z-a'"),
    (Regex(r"\bfoo"), r"\b is not supported in a regular expression"),
    (Regex("a$b"), "$ before the end is not supported in a regular expression"),
    (Regex("(" * 3000 + ")" * 3000), "exceed the maximum number of nested parentheses"),
    (Regex("\ud800"), "half of a surrogate pair is no character"),
    (Special("<nothing>"), "the tokenizer has no special token '<nothing>'"),
    (Special("ab"), "the tokenizer has no special token 'ab'"),
    (Prose(""), "prose needs a text that ends it"),
    (Choice([]), "a choice needs an option"),
    (Repeat(Text("a"), 3, 2), "nothing can be there 3 to 2 times"),
    (Json(False), "no value can satisfy the schema"),
    (ContextFree("root ::= ("), "the EBNF cannot be read: "),
    (ContextFree("root ::= nothing"), "the EBNF cannot be read: "),
    (ContextFree("start: nothing"), 'unknown name: "nothing"'),
    (ContextFree("hello"), "1(6): Expected token ':'"),
    (Tagged([]), "a tagged text needs a tag"),
    (Tagged([Tag("x", "y", Text("a"), "")]), "a tag must begin with its trigger. Given: 'y'"),
]


@pytest.mark.parametrize(("grammar", "why"), REFUSED, ids=lambda it: str(it)[:60])
def test_what_cannot_be_followed_is_reported_in_short(grammar: Any, why: str) -> None:
    with pytest.raises(GrammarError) as refused:
        engine_of().matcher(grammar)
    assert str(refused.value).startswith(why)
    assert len(str(refused.value)) < 400


def test_the_end_of_the_text_is_the_token_that_ends_it() -> None:
    matcher = engine_of().matcher(Regex("ab?"))
    assert end_id() not in allowed(matcher)
    matcher.advance(tokenizer().encode("a").ids)
    assert (matcher.complete, matcher.ended) == (True, False)
    assert end_id() in allowed(matcher)
    matcher.advance([end_id()])
    assert matcher.ended


def test_a_text_that_cannot_go_on_has_ended() -> None:
    matcher = engine_of().matcher(Text("a"))
    matcher.advance(tokenizer().encode("a").ids)
    assert (matcher.complete, matcher.ended) == (True, True)
    assert allowed(matcher) == [end_id()]


def test_forced_tokens_are_allowed_and_those_of_the_tokenizer() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    matcher = engine_of().matcher(Json(schema))
    forced = matcher.jump_forward_tokens()
    assert '{"name": "'.startswith(tokenizer().decode(forced))
    assert tokenizer().encode('{"name": "').ids[: len(forced)] == forced
    assert forced
    matcher.advance(forced)
    assert engine_of().matcher(Regex("[ab]")).jump_forward_tokens() == []


def test_an_endless_forced_text_comes_in_parts() -> None:
    matcher = engine_of().matcher(Regex("a{5000}"))
    assert 0 < len(matcher.jump_forward_tokens()) <= 256


def test_a_token_that_is_not_allowed_is_refused() -> None:
    matcher = engine_of().matcher(NUMBER)
    with pytest.raises(GrammarError):
        matcher.advance(tokenizer().encode("x").ids)


def test_a_copy_goes_its_own_way() -> None:
    matcher = engine_of().matcher(Regex("xy|xz"))
    copy = matcher.copy()
    copy.advance(tokenizer().encode("x").ids)
    assert allowed(matcher) == tokenizer().encode("x").ids
    assert allowed(copy) == tokenizer().encode("yz").ids


def test_many_threads_have_matchers_of_one_engine() -> None:
    engine = engine_of()
    texts: dict[int, tuple[str, bool]] = {}

    def follow(index: int) -> None:
        texts[index] = walk(engine.matcher(Json({"type": "array", "maxItems": index})), index)

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = {i: walk(engine.matcher(Json({"type": "array", "maxItems": i})), i) for i in range(8)}
    assert texts == alone


def test_a_special_token_is_no_text() -> None:
    matcher = engine_of().matcher(Json({"type": "string"}))
    special = tokenizer().token_to_id(START)
    matcher.advance(tokenizer().encode('"').ids)
    assert special not in allowed(matcher)
    plain = [byte for letter in START for byte in tokenizer().encode(letter).ids]
    matcher.advance(plain)
    assert not accepts(matcher, "x")
    assert accepts(matcher, '"')

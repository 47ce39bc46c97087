from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from signal import Signals
from typing import Any

import pytest

from tests.grammar.engines import end_id, folder, vocab_size
from tgi_async.errors import Overloaded
from tgi_async.grammar import checker
from tgi_async.grammar.check import GrammarCheck
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.grammar.grammar import Choice, Json, Regex, Repeat, Sequence, Text, decode

ENDLESS = Json({"type": "string", "pattern": "^(a+)+$", "enum": ["a" * 40 + "b"]})
"""To see whether the pattern matches the text takes longer than anybody lives."""
GOOD = Json({"type": "object", "properties": {"a": {"type": "integer"}}})


def made(**settings: Any) -> GrammarChecker:
    return GrammarChecker(str(folder()), vocab_size(), [end_id()], **settings)


@pytest.fixture(scope="module")
def checks() -> Iterator[GrammarChecker]:
    checker = made(n_processes=1, seconds=0.5)
    yield checker
    checker.close()


def processes(checker: GrammarChecker) -> list[int]:
    running = [process._running for process in checker._pool._processes]
    return [one.pid for one in running if one is not None]


async def test_a_grammar_comes_back_as_workers_get_it(checks: GrammarChecker) -> None:
    schema = {
        "definitions": {"a": {"type": "null"}},
        "properties": {"x": {"$ref": "#/definitions/a"}},
    }
    grammar = Sequence(
        [Text("<"), Choice([Repeat(Json({"type": "object", **schema})), Regex("a")])]
    )
    check = await checks.check(grammar)
    inner = Json({"type": "object", "properties": {"x": {"type": "null"}}})
    assert decode(check.grammar) == Sequence([Text("<"), Choice([Repeat(inner), Regex("a")])])
    assert not check.refusal


@pytest.mark.parametrize(
    ("grammar", "why", "invalid"),
    [
        (Json({"type": "int"}), "`type` at # must be one of", True),
        (Json({"pattern": "\\A"}), "keyword `pattern` at # is not supported", False),
        (Json(5), "a schema must be an object or a boolean, at #", True),
        (Regex("a("), "unclosed group, at '(' (character 2)", False),
        (Sequence([Text("a"), Regex("[z-a]")]), "invalid character class range", False),
        (Json({"const": "\ud800"}), "it is nested too deep, or not made of text", False),
    ],
)
async def test_a_refusal_says_why(
    checks: GrammarChecker, grammar: Json | Regex | Sequence, why: str, invalid: bool
) -> None:
    check = await checks.check(grammar)
    assert check.refusal.startswith(why)
    assert (check.grammar, check.invalid) == ("", invalid)


async def test_what_takes_too_long_is_refused_and_the_next_is_served(
    checks: GrammarChecker,
) -> None:
    check = await checks.check(ENDLESS)
    assert check == GrammarCheck(refusal="compiling it took more than 0.5 seconds")
    assert (await checks.check(GOOD)).grammar


async def test_verdicts_are_kept_refusals_too(checks: GrammarChecker) -> None:
    await checks.check(ENDLESS)
    [before] = processes(checks)
    assert (await checks.check(ENDLESS)).refusal
    assert processes(checks) == [before], "it was not tried again"


async def test_the_same_is_tried_once_when_it_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = made(n_processes=1)
    asked: list[bytes] = []
    ask = checker._pool.ask

    def noted(line: bytes) -> bytes:
        asked.append(line)
        return ask(line)

    monkeypatch.setattr(checker._pool, "ask", noted)
    try:
        first, second = await asyncio.gather(checker.check(GOOD), checker.check(GOOD))
        assert first == second
        assert len(asked) == 1
    finally:
        checker.close()


async def test_one_that_gives_up_leaves_the_verdict_to_the_others() -> None:
    checker = made(n_processes=1)
    try:
        impatient = asyncio.create_task(checker.check(GOOD))
        patient = asyncio.create_task(checker.check(GOOD))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).grammar
    finally:
        checker.close()


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "MAX_WAITING", 2)
    checks = made(n_processes=1)
    try:
        waiting = [asyncio.create_task(checks.check(Regex(letter))) for letter in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="Too many grammars"):
            await checks.check(Regex("c"))
        assert all(check.grammar for check in await asyncio.gather(*waiting))
        assert (await checks.check(Regex("c"))).grammar
    finally:
        checks.close()


async def test_so_many_verdicts_are_kept(
    monkeypatch: pytest.MonkeyPatch, checks: GrammarChecker
) -> None:
    monkeypatch.setattr(checker, "MAX_KEPT", 3)
    for letter in "abcdef":
        await checks.check(Regex(letter))
    assert len(checks._known) == 3
    assert checks._n_characters == sum(len(one.grammar) for one in checks._known.values())


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_process_that_died_is_replaced(checks: GrammarChecker, sent: Signals) -> None:
    await checks.check(Regex(f"before {sent}"))
    [process] = checks._pool._processes
    assert process._running is not None
    os.kill(process._running.pid, sent)
    process._running.wait()
    assert (await checks.check(Regex(f"after {sent}"))).grammar


async def test_a_process_that_dies_while_it_is_asked_costs_that_request(
    checks: GrammarChecker,
) -> None:
    await checks.check(Regex("x"))
    [before] = processes(checks)
    asked = asyncio.create_task(checks.check(Json({**ENDLESS.schema, "title": "again"})))
    await asyncio.sleep(0.1)
    os.kill(before, signal.SIGSEGV)
    check = await asked
    assert check.refusal == f"compiling it ended its process (status {-signal.SIGSEGV})"
    assert processes(checks) != [before]
    assert (await checks.check(Regex("y"))).grammar


async def test_a_process_that_hangs_is_ended() -> None:
    checker = made(n_processes=1, patience=1.5)
    try:
        await checker.check(Regex("x"))
        [before] = processes(checker)
        os.kill(before, signal.SIGSTOP)
        check = await checker.check(Regex("y"))
        assert "ended its process" in check.refusal
        assert (await checker.check(Regex("z"))).grammar
    finally:
        checker.close()


def test_processes_end_with_the_server() -> None:
    checker = made(n_processes=2)
    checker.prepare()
    [started] = processes(checker)
    checker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


HOSTILE = [
    Json(nested(60)),
    Json(nested(300)),
    Json({"enum": [f"value {index}" for index in range(5_000)]}),
    Json({"enum": list(range(1_000))}),
    Json({"type": "array", "maxItems": 1000, "items": {"type": "array", "maxItems": 1000}}),
    Json({"type": "array", "minItems": 10**9}),
    Json({"type": "string", "minLength": 100_000}),
    Json({"type": "integer", "multipleOf": 1_000_003}),
    Json({"type": "object", "properties": {f"p{index}": {} for index in range(2_000)}}),
    Json({"allOf": [{"anyOf": [{"minimum": i}, {"maxLength": i}]} for i in range(30)]}),
    Json({"oneOf": [{"properties": {f"p{i}": {"const": i}}} for i in range(20)]}),
    Json({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    Json({"items": {"$ref": "#"}, "minItems": 1, "type": "array"}),
    Json({"type": "string", "pattern": "(.*a.{20}){3}"}),
    Json({"type": "object", "patternProperties": {f"^{i}.*x.{{9}}": {} for i in range(40)}}),
    Json({"x" * 100_000: 1}),
    Json({"pattern": "^(?=.*a.{12}b)(?!.*c.{12}d).*$"}),
    Json({"pattern": "(?!" * 300 + "a" + ")" * 300}),
    Json({"not": {"pattern": "(a|b)*a(a|b){20}"}, "type": "string"}),
    Json({"patternProperties": {f"{i}.*x": {"minimum": i} for i in range(12)}, "type": "object"}),
    Json({"type": "array", "contains": {"contains": {"contains": {"const": 1}}}, "minContains": 9}),
    Json({"allOf": [{"contains": {"const": i}, "maxContains": i} for i in range(12)]}),
    Json({"oneOf": [{"required": [f"p{i}", f"q{i}"], "type": "object"} for i in range(60)]}),
    Json({"type": "object", "properties": {f"p{i}": {} for i in range(60)}, "minProperties": 30}),
    Json(
        {
            "type": "object",
            "allOf": [
                {"if": {"properties": {f"p{i}": {"$ref": "#"}}}, "then": {"anyOf": [{"$ref": "#"}]}}
                for i in range(40)
            ],
        }
    ),
    Json(
        {
            "oneOf": [
                {"properties": {f"p{i}": {"oneOf": [{"minimum": j} for j in range(20)]}}}
                for i in range(20)
            ]
        }
    ),
    Json({"dependentSchemas": {f"p{i}": {"required": [f"q{i}"]} for i in range(300)}}),
    Json(
        {"$defs": {f"{i}": {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(60)}}
        | {"$ref": "#/$defs/0"}
    ),
    Json({"not": {"oneOf": [{"not": {"items": {"minimum": i}}} for i in range(30)]}}),
    Json({"type": "array", "uniqueItems": True, "minItems": 1000, "items": {"minLength": 999}}),
    Json({"items": [{"extends": [{"disallow": [{"$ref": "#"}]}]}], "divisibleBy": 1e-300}),
    Json({"type": "number", "not": {"multipleOf": 1e-300}}),
    Json({"$schema": "http://json-schema.org/draft-03/schema", "type": [{"type": ["any"]}] * 400}),
    Regex("(?:(?:a{1000}){1000}){10}"),
    Regex("(a?){500}a{500}"),
    Regex("((a{0,100}){0,100}){0,100}"),
    Regex("(?:.*(?:ab|ba).*){30}"),
    Regex(".*(a|b).{14}(a|b).{14}c"),
    Regex("a|" * 50_000),
    Regex("(" * 5_000 + ")" * 5_000),
    Regex("[^\\W\\d_]{1,20000}" * 3),
    Regex("\x00\ufffe\U0010ffff"),
    Regex("\ud800"),
    Regex("(?i)" + "straße" * 2_000),
    Regex("\\p{L}{1,5000}x"),
]


@pytest.mark.parametrize("grammar", HOSTILE, ids=lambda it: str(it)[:40])
async def test_hostile_grammars_end_within_the_limit(
    checks: GrammarChecker, grammar: Json | Regex
) -> None:
    """Followed or refused: the next one is served."""
    check = await checks.check(grammar)
    assert bool(check.grammar) != bool(check.refusal), check
    assert len(check.refusal) < 500
    assert (await checks.check(GOOD)).grammar


async def test_the_loop_goes_on_meanwhile(checks: GrammarChecker) -> None:
    """A slow grammar holds up nobody who does not ask for one."""
    asked = asyncio.create_task(checks.check(Json({**ENDLESS.schema, "title": "more"})))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5

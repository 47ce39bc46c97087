from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.grammar.engines import end_id, folder, vocab_size
from tgi_async.errors import Overloaded
from tgi_async.grammar import vetting
from tgi_async.grammar.grammar import Choice, Json, Regex, Repeat, Sequence, Text, decode
from tgi_async.grammar.verdict import Verdict
from tgi_async.grammar.vetting import Vetting

ENDLESS = Json({"type": "string", "pattern": "^(a+)+$", "enum": ["a" * 40 + "b"]})
"""To see whether the pattern matches the text takes longer than anybody lives."""
GOOD = Json({"type": "object", "properties": {"a": {"type": "integer"}}})


def made(**settings: Any) -> Vetting:
    return Vetting(str(folder()), vocab_size(), [end_id()], **settings)


@pytest.fixture(scope="module")
def vets() -> Iterator[Vetting]:
    vetting = made(n_processes=1, seconds=0.5)
    yield vetting
    vetting.close()


def processes(vetting: Vetting) -> list[int]:
    running = [process._running for process in vetting._pool._processes]
    return [one.pid for one in running if one is not None]


async def test_a_grammar_comes_back_as_workers_get_it(vets):
    schema = {
        "definitions": {"a": {"type": "null"}},
        "properties": {"x": {"$ref": "#/definitions/a"}},
    }
    grammar = Sequence(
        [Text("<"), Choice([Repeat(Json({"type": "object", **schema})), Regex("a")])]
    )
    verdict = await vets.verdict(grammar)
    inner = Json({"type": "object", "properties": {"x": {"type": "null"}}})
    assert decode(verdict.grammar) == Sequence([Text("<"), Choice([Repeat(inner), Regex("a")])])
    assert not verdict.refusal


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
async def test_a_refusal_says_why(vets, grammar, why, invalid):
    verdict = await vets.verdict(grammar)
    assert verdict.refusal.startswith(why)
    assert (verdict.grammar, verdict.invalid) == ("", invalid)


async def test_what_takes_too_long_is_refused_and_the_next_is_served(vets):
    verdict = await vets.verdict(ENDLESS)
    assert verdict == Verdict(refusal="compiling it took more than 0.5 seconds")
    assert (await vets.verdict(GOOD)).grammar


async def test_verdicts_are_kept_refusals_too(vets):
    await vets.verdict(ENDLESS)
    [before] = processes(vets)
    assert (await vets.verdict(ENDLESS)).refusal
    assert processes(vets) == [before], "it was not tried again"


async def test_the_same_is_tried_once_when_it_comes_twice():
    vetting = made(n_processes=1)
    asked: list[bytes] = []
    ask = vetting._pool.ask
    vetting._pool.ask = lambda line: (asked.append(line), ask(line))[1]
    try:
        first, second = await asyncio.gather(vetting.verdict(GOOD), vetting.verdict(GOOD))
        assert first == second
        assert len(asked) == 1
    finally:
        vetting.close()


async def test_one_that_gives_up_leaves_the_verdict_to_the_others():
    vetting = made(n_processes=1)
    try:
        impatient = asyncio.create_task(vetting.verdict(GOOD))
        patient = asyncio.create_task(vetting.verdict(GOOD))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).grammar
    finally:
        vetting.close()


async def test_only_so_many_wait(monkeypatch):
    monkeypatch.setattr(vetting, "MAX_WAITING", 2)
    vets = made(n_processes=1)
    try:
        waiting = [asyncio.create_task(vets.verdict(Regex(letter))) for letter in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="Too many grammars"):
            await vets.verdict(Regex("c"))
        assert all(verdict.grammar for verdict in await asyncio.gather(*waiting))
        assert (await vets.verdict(Regex("c"))).grammar
    finally:
        vets.close()


async def test_so_many_verdicts_are_kept(monkeypatch, vets):
    monkeypatch.setattr(vetting, "MAX_KEPT", 3)
    for letter in "abcdef":
        await vets.verdict(Regex(letter))
    assert len(vets._known) == 3
    assert vets._n_characters == sum(len(one.grammar) for one in vets._known.values())


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_process_that_died_is_replaced(vets, sent):
    await vets.verdict(Regex(f"before {sent}"))
    [process] = vets._pool._processes
    os.kill(process._running.pid, sent)
    process._running.wait()
    assert (await vets.verdict(Regex(f"after {sent}"))).grammar


async def test_a_process_that_dies_while_it_is_asked_costs_that_request(vets):
    await vets.verdict(Regex("x"))
    [before] = processes(vets)
    asked = asyncio.create_task(vets.verdict(Json({**ENDLESS.schema, "title": "again"})))
    await asyncio.sleep(0.1)
    os.kill(before, signal.SIGSEGV)
    verdict = await asked
    assert verdict.refusal == f"compiling it ended its process (status {-signal.SIGSEGV})"
    assert processes(vets) != [before]
    assert (await vets.verdict(Regex("y"))).grammar


async def test_a_process_that_hangs_is_ended():
    vetting = made(n_processes=1, patience=1.5)
    try:
        await vetting.verdict(Regex("x"))
        [before] = processes(vetting)
        os.kill(before, signal.SIGSTOP)
        verdict = await vetting.verdict(Regex("y"))
        assert "ended its process" in verdict.refusal
        assert (await vetting.verdict(Regex("z"))).grammar
    finally:
        vetting.close()


def test_processes_end_with_the_server():
    vetting = made(n_processes=2)
    vetting.prepare()
    [started] = processes(vetting)
    vetting.close()
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
async def test_hostile_grammars_end_within_the_limit(vets, grammar):
    """Followed or refused: the next one is served."""
    verdict = await vets.verdict(grammar)
    assert bool(verdict.grammar) != bool(verdict.refusal), verdict
    assert len(verdict.refusal) < 500
    assert (await vets.verdict(GOOD)).grammar


async def test_the_loop_goes_on_meanwhile(vets):
    """A slow grammar holds up nobody who does not ask for one."""
    asked = asyncio.create_task(vets.verdict(Json({**ENDLESS.schema, "title": "more"})))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5

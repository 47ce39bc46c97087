"""Texts that are held to grammars, by the real engine, worker and model."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from msgspec import structs

from tests.integration.prompts import QUESTIONS, chat
from tests.integration.running_engine import finish, finish_all, running_engine
from tgi_async.engine import Engine
from tgi_async.errors import GenerationError
from tgi_async.generation import GenerationRequest
from tgi_async.grammar.grammar import Json, Prose, Regex, Sequence, Text, encode
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling

pytestmark = pytest.mark.model
in_module_loop = pytest.mark.asyncio(loop_scope="module")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": {"enum": ["red", "green", "a colour's long name"]}, "minItems": 2},
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"type": "number"}}}]},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "string", "minLength": 3, "maxLength": 12},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
]
REGEXES = [
    "(abc|d)+z",
    "[a-z]{3}( [a-z]{2,9}){4}\\.",
    "[가-힣]{2,5}!",
    "(yes|no), because .{10,200}",
]
SAMPLINGS = [
    Sampling(),
    Sampling(do_sample=True, temperature=1.0, seed=7),
    Sampling(do_sample=True, temperature=5.0, seed=11, logprobs=True),
    Sampling(do_sample=True, temperature=2.0, top_k=50, top_p=0.9, typical_p=0.9, seed=3),
    Sampling(repetition_penalty=1.3, logprobs=True, top_n_tokens=2),
]


def prompts_of(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(chat(question)) for question in QUESTIONS]


def requests_of(
    prompts: list[list[int]], grammars: list[str], max_new_tokens: int
) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt=prompts[(i + j) % len(prompts)],
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            grammar=grammar,
        )
        for i, grammar in enumerate(grammars)
        for j, sampling in enumerate(SAMPLINGS)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Path) -> AsyncIterator[Engine]:
    async with running_engine(model_folder, max_rows=12) as running:
        yield running


@in_module_loop
@pytest.mark.parametrize(
    "max_new_tokens", [24, *(pytest.param(n, marks=pytest.mark.full) for n in (64, 160))]
)
async def test_texts_follow_their_grammars(
    engine: Engine, tokenizer: Tokenizer, max_new_tokens: int
) -> None:
    """All of them can be completed within the least of these budgets, so all of them are."""
    grammars = [encode(Json(schema)) for schema in SCHEMAS] + [
        encode(Regex(pattern)) for pattern in REGEXES
    ]
    prompts = prompts_of(tokenizer)
    requests = requests_of(prompts, grammars, max_new_tokens)
    free = GenerationRequest(prompt=prompts[0], sampling=Sampling(), max_new_tokens=40)
    alone = await finish(engine, free)
    *texts, beside = await finish_all(engine, [*requests, free], within=1.0)
    assert beside == alone
    for request, text in zip(requests, texts, strict=True):
        what = structs.asdict(request), text
        assert len(text.tokens) <= max_new_tokens, what
        index = grammars.index(request.grammar)
        if index < len(SCHEMAS):
            Draft202012Validator(SCHEMAS[index]).validate(json.loads(text.text))
        else:
            assert re.fullmatch(REGEXES[index - len(SCHEMAS)], text.text), what


@in_module_loop
async def test_a_text_is_the_same_alone_in_a_batch_preempted_and_without_looking_ahead(
    engine: Engine, model_folder: Path, tokenizer: Tokenizer
) -> None:
    grammars = [encode(Json(schema)) for schema in SCHEMAS[:2]]
    requests = requests_of(prompts_of(tokenizer), grammars, 100)
    alone = [await finish(engine, request) for request in requests]
    async with running_engine(
        model_folder, n_blocks=16, max_rows=10, lookahead=0, crowded=True
    ) as small:
        crowded = await finish_all(small, requests, within=0.1)
        n_preemptions = small.core.n_preemptions
    assert n_preemptions
    assert crowded == alone


@in_module_loop
async def test_what_surrounds_a_value(engine: Engine, tokenizer: Tokenizer) -> None:
    grammar = Sequence([Prose("</think>"), Text("\n<answer>"), Json(PERSON), Text("</answer>")])
    request = GenerationRequest(
        prompt=prompts_of(tokenizer)[1],
        sampling=Sampling(do_sample=True, seed=5),
        max_new_tokens=80,
        grammar=encode(grammar),
    )
    text = (await finish(engine, request)).text
    prose, _, rest = text.partition("</think>")
    found = re.fullmatch(r"\n<answer>(.*)</answer>", rest, re.DOTALL)
    assert found, (prose, rest)
    Draft202012Validator(PERSON).validate(json.loads(found[1]))


@in_module_loop
async def test_a_grammar_that_cannot_be_followed_fails_its_own_request(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    prompt = prompts_of(tokenizer)[0]
    broken = GenerationRequest(
        prompt=prompt, sampling=Sampling(), max_new_tokens=20, grammar=encode(Regex("(a"))
    )
    free = GenerationRequest(prompt=prompt, sampling=Sampling(), max_new_tokens=20)
    generation = engine.submit(free)
    with pytest.raises(GenerationError, match="grammar"):
        await finish(engine, broken)
    text = "".join([t.text async for emitted in generation for t in emitted.tokens])
    assert "Paris" in text

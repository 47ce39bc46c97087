"""float32: drafts change no text and no log-probability, whatever the request asks for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.doubles import eager_worker
from tests.integration.prompts import chat, mixed
from tests.integration.reference import Reference
from tests.integration.running_engine import (
    BLOCK_SIZE,
    Text,
    finish_all,
    running_engine,
    until_idle,
)
from tests.integration.waiting import until
from tgi_async.engine import Engine
from tgi_async.generation import Drafts, GenerationRequest
from tgi_async.grammar.grammar import Json, Regex, encode
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling

pytestmark = pytest.mark.model

PASSAGES = (
    "The river rises in the mountains, and the river carries stones for a hundred miles.",
    'The keys are: "name", "age", "city"; the values are: "Ada", 36, "London".',
    "One fish, two fish, red fish, blue fish. One fish, two fish, red fish, blue fish.",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
SAMPLINGS = (
    Sampling(),
    Sampling(do_sample=True, temperature=0.7, seed=1),
    Sampling(do_sample=True, temperature=1.0, top_p=0.9, seed=2, repetition_penalty=1.2),
    Sampling(frequency_penalty=1.0),
    Sampling(output_frequency_penalty=0.5, output_presence_penalty=0.5, model_logprobs=True),
    Sampling(do_sample=True, temperature=0.8, top_k=20, seed=3, watermark=True),
)


class Seen(NamedTuple):
    """What a request got, with its log-probabilities, and what drafts did for it."""

    tokens: list[int]
    logprobs: list[float | None]
    drafts: Drafts


def with_drafts(
    folder: Path, n: int = 8, method: str = "suffix", **more: Any
) -> AbstractAsyncContextManager[Engine]:
    return running_engine(
        folder, max_drafts=n, speculation=method, command=eager_worker.COMMAND, **more
    )


@pytest.fixture(scope="module")
def requests(tokenizer: Tokenizer) -> list[GenerationRequest]:
    """Texts that repeat, under every kind of sampling, without and with grammars."""
    grammars = ("", encode(Json(SCHEMA)), encode(Regex("(red fish, |blue fish, ){4,40}")))
    made: list[GenerationRequest] = []
    for at, passage in enumerate(PASSAGES):
        prompt = tokenizer.encode(chat(f"Repeat this: {passage}"))
        for number, sampling in enumerate(SAMPLINGS):
            sampling = Sampling(
                **{name: getattr(sampling, name) for name in sampling.__struct_fields__}
                | {"logprobs": True, "top_n_tokens": number % 3}
            )
            made.append(
                GenerationRequest(
                    prompt,
                    sampling,
                    client=f"client {number % 2}",
                    max_new_tokens=40,
                    ignore_eos=number % 2 == 0,
                    grammar=grammars[(at + number) % 3],
                )
            )
    return made


async def finish_with_logprobs(engine: Engine, requests: list[GenerationRequest]) -> list[Seen]:
    async def one(request: GenerationRequest) -> Seen:
        tokens: list[int] = []
        logprobs: list[float | None] = []
        generation = engine.submit(request)
        async for emitted in generation:
            tokens += [token.id for token in emitted.tokens]
            logprobs += [token.logprob for token in emitted.tokens]
        return Seen(tokens, logprobs, generation.drafts)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(request)) for request in requests]
    found = [task.result() for task in tasks]
    await until_idle(engine)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(
    model_folder: Path, requests: list[GenerationRequest]
) -> AsyncIterator[list[Seen]]:
    """What the requests get without drafts."""
    async with running_engine(model_folder) as engine:
        yield await finish_with_logprobs(engine, requests)


def check(seen: list[Seen], undisturbed: list[Seen]) -> None:
    for one, due in zip(seen, undisturbed, strict=True):
        assert one.tokens == due.tokens
        assert one.logprobs == pytest.approx(due.logprobs, abs=1e-3)


def check_drafts(seen: list[Seen]) -> int:
    """Return how many drafts were accepted, as some must be, and some refused."""
    n_accepted = sum(one.drafts.accepted for one in seen)
    assert 0 < n_accepted < sum(one.drafts.verified for one in seen)
    return n_accepted


@pytest.mark.parametrize(
    ("method", "n", "more"),
    [
        ("suffix", 8, {}),
        pytest.param("ngram", 3, {}, marks=pytest.mark.full),
        pytest.param("suffix", 3, {"lookahead": 0}, marks=pytest.mark.full),
        pytest.param("suffix", 8, {"max_rows": 1}, marks=pytest.mark.full),
        pytest.param("suffix", 5, {"model_impl": "transformers"}, marks=pytest.mark.full),
        pytest.param("ngram", 8, {"world_size": 2}, marks=pytest.mark.full),
        pytest.param("suffix", 4, {"n_blocks": 22, "crowded": True}, marks=pytest.mark.full),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_texts_and_logprobs_are_those_without_drafts(
    model_folder: Path,
    requests: list[GenerationRequest],
    undisturbed: list[Seen],
    method: str,
    n: int,
    more: dict[str, Any],
) -> None:
    async with with_drafts(model_folder, n, method, **more) as engine:
        seen = await finish_with_logprobs(engine, requests)
        if "crowded" in more:
            assert engine.core.n_preemptions > 0
        # Again: prompts hit, and earlier answers of the same client are drafted.
        again = await finish_with_logprobs(engine, requests)
    check(seen, undisturbed)
    check(again, undisturbed)
    assert check_drafts(again) > check_drafts(seen)


@pytest.mark.asyncio(loop_scope="module")
async def test_texts_are_replayed_after_a_workers_death(
    model_folder: Path, requests: list[GenerationRequest], undisturbed: list[Seen]
) -> None:
    async with with_drafts(model_folder, 3, "ngram", max_batch_prefill_tokens=16) as engine:
        running = asyncio.create_task(finish_with_logprobs(engine, requests))

        async def some_were_accepted() -> bool:
            return sum(request.n_accepted for request in engine.core.running) > 30

        await until(some_were_accepted)
        assert engine._workers.group is not None
        os.kill(engine._workers.group.pids[0], signal.SIGKILL)
        check(await running, undisturbed)
        assert engine.worker_restarts == 1


@pytest.mark.parametrize(
    "n",
    [6, pytest.param(64, marks=pytest.mark.full)],
)
async def test_greedy_texts_of_preempted_requests_are_those_of_transformers(
    model_folder: Path, reference: Reference, tokenizer: Tokenizer, n: int
) -> None:
    cases = mixed(tokenizer, n, longest=200, new_tokens=(24, 48))
    longest = max(len(case.prompt) + case.max_new_tokens for case in cases)
    async with with_drafts(
        model_folder, n_blocks=longest // BLOCK_SIZE + 6, crowded=True
    ) as engine:
        texts: list[Text] = await finish_all(
            engine,
            [
                GenerationRequest(case.prompt, Sampling(), max_new_tokens=case.max_new_tokens)
                for case in cases
            ],
            within=0.5,
        )
        assert engine.core.n_preemptions > 0
    n_ties = sum(
        reference.compare(case.prompt, text.tokens) for case, text in zip(cases, texts, strict=True)
    )
    assert n_ties <= max(1, 0.005 * sum(len(text.tokens) for text in texts))


def test_a_schema_was_followed(
    requests: list[GenerationRequest], undisturbed: list[Seen], tokenizer: Tokenizer
) -> None:
    texts = [
        tokenizer.decode(seen.tokens)
        for request, seen in zip(requests, undisturbed, strict=True)
        if "properties" in request.grammar
    ]
    assert texts
    assert all(text.startswith("{") for text in texts)
    assert any(set(json.loads(text)) == {"name", "tags"} for text in texts if text.endswith("}"))

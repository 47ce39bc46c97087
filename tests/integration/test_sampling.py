"""float32: sampling is a function of the request and the logits, never of the batch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from tests.integration.prompts import mixed
from tests.integration.running_engine import (
    BLOCK_SIZE,
    Text,
    finish,
    finish_all,
    running_engine,
    until_idle,
)
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]


def seeded(seed: int) -> Sampling:
    """By turns as TGI's routes ask for it and as OpenAI's do."""
    if seed % 2:
        return Sampling(
            do_sample=True,
            min_p=0.02,
            output_frequency_penalty=0.6,
            output_presence_penalty=0.4,
            biased_ids=[28, 30],
            biases=[2.0, -100.0],
            seed=seed,
        )
    return Sampling(do_sample=True, temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=seed)


@pytest.fixture(scope="module")
def requests(tokenizer: Tokenizer) -> list[GenerationRequest]:
    return [
        GenerationRequest(case.prompt, seeded(1000 + i), max_new_tokens=case.max_new_tokens)
        for i, case in enumerate(mixed(tokenizer, 8, longest=120, new_tokens=(16, 32)))
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Path) -> AsyncIterator[Engine]:
    async with running_engine(model_folder, max_rows=32) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(engine: Engine, requests: list[GenerationRequest]) -> list[Text]:
    """What each request gets when nothing else runs, and nothing of it is cached."""
    return [await finish(engine, request) for request in requests]


async def test_twice_in_a_row(
    engine: Engine, requests: list[GenerationRequest], alone: list[Text]
) -> None:
    assert await finish(engine, requests[0]) == alone[0]
    assert await finish(engine, requests[0]) == alone[0]


async def test_in_a_crowd(
    engine: Engine, requests: list[GenerationRequest], alone: list[Text]
) -> None:
    greedy = [msgspec.structs.replace(request, sampling=Sampling()) for request in requests]

    texts = await finish_all(engine, [*requests, *greedy, *requests], within=1.0)

    n = len(requests)
    assert texts[:n] == alone
    assert texts[2 * n :] == alone


async def test_another_seed_or_another_choice_gives_another_text(
    engine: Engine, requests: list[GenerationRequest], alone: list[Text]
) -> None:
    first = requests[0]
    other_seed = msgspec.structs.replace(first, sampling=seeded(7))
    other_choice = msgspec.structs.replace(
        first, sampling=msgspec.structs.replace(first.sampling, choice=1)
    )

    texts = {
        alone[0].text,
        (await finish(engine, other_seed)).text,
        (await finish(engine, other_choice)).text,
    }
    assert len(texts) == 3


@pytest.mark.full
async def test_after_a_preemption(
    model_folder: Path, requests: list[GenerationRequest], alone: list[Text], engine: Engine
) -> None:
    await until_idle(engine)
    longest = max(len(one.prompt) + (one.max_new_tokens or 0) for one in requests)
    async with running_engine(
        model_folder, n_blocks=longest // BLOCK_SIZE + 2, crowded=True
    ) as small:
        texts = await finish_all(small, requests, within=0.2)
        n_preemptions = small.core.n_preemptions

    assert texts == alone
    assert n_preemptions > 0

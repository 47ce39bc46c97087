"""Quantized in bfloat16: the text of a request is the same alone, in any batch, and whatever
happens to it on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.prompts import Case, branching, mixed
from tests.integration.running_engine import (
    BLOCK_SIZE,
    finish,
    finish_all,
    running_engine,
    until_idle,
)
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling

pytestmark = pytest.mark.model

N_CASES = 8


async def texts_of(engine: Engine, cases: list[Case], *, together: bool) -> list[list[int]]:
    requests = [
        GenerationRequest(
            case.prompt, Sampling(seed=at, do_sample=at % 2 > 0), max_new_tokens=case.max_new_tokens
        )
        for at, case in enumerate(cases)
    ]
    if together:
        texts = await finish_all(engine, requests, within=0.1)
    else:
        texts = [await finish(engine, request) for request in requests]
    await until_idle(engine)
    return [text.tokens for text in texts]


@pytest.mark.parametrize(
    "quantize",
    [
        "int8",
        *(
            pytest.param(one, marks=pytest.mark.full)
            for one in ("int4", "eetq", "bitsandbytes-nf4")
        ),
    ],
)
async def test_a_text_does_not_depend_on_what_else_is_served(
    model_folder: Path, tokenizer: Tokenizer, quantize: str
) -> None:
    cases = mixed(tokenizer, N_CASES, longest=120, new_tokens=(8, 24))
    cases += branching(tokenizer, 4, n_shared=64, longest_own=20, max_new_tokens=8)
    async with running_engine(model_folder, quantize=quantize) as engine:
        alone = await texts_of(engine, cases, together=False)
        assert await texts_of(engine, cases, together=True) == alone
    longest = max(len(case.prompt) + case.max_new_tokens for case in cases)
    async with running_engine(
        model_folder,
        quantize=quantize,
        n_blocks=longest // BLOCK_SIZE + 3,
        max_batch_prefill_tokens=16,
    ) as engine:
        assert await texts_of(engine, cases, together=True) == alone
        assert engine.core.n_preemptions > 0

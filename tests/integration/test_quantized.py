"""Weights or KV cache quantized, in bfloat16: the text of a request is the same alone, in any
batch, and whatever happens to it on the way. The embedded model with the blocks of its file."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.prompts import Case, branching, mixed
from tests.integration.running_engine import (
    BLOCK_SIZE,
    finish,
    finish_all,
    running_engine,
    until_idle,
)
from tests.integration.server import Server
from tests.integration.waiting import until
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling
from workers.models.embedded import find_gguf, prepare_embedded

pytestmark = pytest.mark.model


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


def full(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("quantize", "kv_cache_dtype"),
    [
        ("int8", ""),
        ("", "fp8_e4m3fn"),
        full("int4", ""),
        full("eetq", ""),
        full("bitsandbytes-nf4", ""),
        full("", "int8"),
        full("", "fp8_e5m2"),
        full("int8", "int8"),
    ],
)
async def test_a_text_does_not_depend_on_what_else_is_served(
    model_folder: Path, tokenizer: Tokenizer, quantize: str, kv_cache_dtype: str
) -> None:
    await _check_texts(model_folder, tokenizer, quantize, kv_cache_dtype)


@pytest.mark.full
@pytest.mark.parametrize("round_activations", [False, True])
async def test_nor_does_it_with_the_blocks_of_a_gguf_file(
    tokenizer: Tokenizer, round_activations: bool
) -> None:
    await _check_texts(
        prepare_embedded(packed=True), tokenizer, "gguf", round_activations=round_activations
    )


async def _check_texts(
    folder: Path,
    tokenizer: Tokenizer,
    quantize: str,
    kv_cache_dtype: str = "",
    *,
    round_activations: bool = False,
) -> None:
    cases = mixed(tokenizer, 4 if kv_cache_dtype else 8, longest=120, new_tokens=(8, 24))
    cases += branching(tokenizer, 4, n_shared=64, longest_own=20, max_new_tokens=8)
    async with running_engine(
        folder,
        quantize=quantize,
        kv_cache_dtype=kv_cache_dtype,
        round_activations=round_activations,
    ) as engine:
        alone = await texts_of(engine, cases, together=False)
        before = engine.core.n_hit_tokens
        assert await texts_of(engine, cases, together=True) == alone
        assert engine.core.n_hit_tokens - before > sum(len(x.prompt) for x in cases) / 2
    longest = max(len(case.prompt) + case.max_new_tokens for case in cases)
    async with running_engine(
        folder,
        quantize=quantize,
        kv_cache_dtype=kv_cache_dtype,
        round_activations=round_activations,
        n_blocks=longest // BLOCK_SIZE + 3,
        max_batch_prefill_tokens=16,
        crowded=True,
    ) as engine:
        assert await texts_of(engine, cases, together=True) == alone
        assert engine.core.n_preemptions > 0
        if not kv_cache_dtype:
            return
        # The texts of a worker that is killed go on in the next one.
        texts = asyncio.ensure_future(texts_of(engine, cases, together=True))

        async def several_run() -> bool:
            return engine.n_running > 2

        await until(several_run)
        assert engine._workers.group is not None
        os.kill(engine._workers.group.pids[0], signal.SIGKILL)
        assert await texts == alone
        assert engine.worker_restarts == 1


@pytest.mark.parametrize(
    "flags", [(), pytest.param(("--cpu-activations", "int8"), marks=pytest.mark.full)]
)
def test_the_embedded_model_answers_with_the_blocks_of_its_file(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    given = ("--quantize", "gguf", "--max-batch-size", "2", *flags)
    with Server.running(tmp_path / "log", *given) as server:
        info = httpx.get(f"{server.url}/info").json()
        question = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"messages": question, "max_tokens": 20}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()
    said = reply["choices"][0]["message"]["content"]
    # Words in English and in French are as likely, but for what rounding adds.
    assert "Paris" in said if not flags else said
    assert info["quantization"] == "gguf (Q4_1, Q8_0)" + (", activations in int8" if flags else "")
    assert info["quantization"] in server.log
    assert info["weight_bytes"] < 1.1 * find_gguf().stat().st_size

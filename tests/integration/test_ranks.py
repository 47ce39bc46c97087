"""float32: on any number of ranks the text is what transformers' `generate` says."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integration.prompts import Case, mixed
from tests.integration.reference import Reference
from tests.integration.running_engine import finish_all, running_engine, until_idle
from tests.integration.waiting import until
from tgi_async.generation import GenerationRequest
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling

pytestmark = [pytest.mark.model, pytest.mark.full]

MOST_NEAR_TIES = 0.005
"""Of all tokens."""


@pytest.fixture(scope="module")
def eight_heads(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights with 8 heads, 4 of them for keys and values, that reads what
    the embedded model's tokenizer writes."""
    folder = tmp_path_factory.mktemp("eight")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=200,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, folder)
    return folder


@pytest.fixture(scope="module")
def eight_heads_reference(eight_heads: Path) -> Reference:
    return Reference(eight_heads)


def requests(cases: list[Case]) -> list[GenerationRequest]:
    return [
        GenerationRequest(case.prompt, Sampling(), max_new_tokens=case.max_new_tokens)
        for case in cases
    ]


async def hold(
    folder: Path, reference: Reference, cases: list[Case], n_ranks: int, implementation: str
) -> str:
    """Serve the cases, compare each, and say how close it was."""
    async with running_engine(
        folder, n_blocks=200, max_rows=8, model_impl=implementation, world_size=n_ranks
    ) as engine:
        texts = await finish_all(engine, requests(cases), within=1.0)
        await until_idle(engine)
    n = sum(len(text.tokens) for text in texts)
    ties = sum(
        reference.compare(case.prompt, text.tokens) for case, text in zip(cases, texts, strict=True)
    )
    assert ties <= max(1, MOST_NEAR_TIES * n)
    return f"{n_ranks} ranks, {implementation}: {n} tokens as transformers, {ties} near-ties"


VARIANTS = [
    (n, implementation) for n in (1, 2, 3, 4) for implementation in ("fused", "transformers")
]


@pytest.mark.parametrize(("n_ranks", "implementation"), VARIANTS)
async def test_nine_heads_and_three_of_keys(
    model_folder: Path,
    reference: Reference,
    tokenizer: Tokenizer,
    report: list[str],
    n_ranks: int,
    implementation: str,
) -> None:
    cases = mixed(tokenizer, 12, longest=120, new_tokens=(8, 16))
    line = await hold(model_folder, reference, cases, n_ranks, implementation)
    report.append(f"SmolLM2, {line}")


@pytest.mark.parametrize(("n_ranks", "implementation"), VARIANTS)
async def test_eight_heads_and_four_of_keys(
    eight_heads: Path,
    eight_heads_reference: Reference,
    tokenizer: Tokenizer,
    report: list[str],
    n_ranks: int,
    implementation: str,
) -> None:
    cases = mixed(tokenizer, 12, longest=120, new_tokens=(8, 16))
    line = await hold(eight_heads, eight_heads_reference, cases, n_ranks, implementation)
    report.append(f"8 heads, {line}")


async def test_two_ranks_of_the_fused_decoder(
    model_folder: Path, reference: Reference, tokenizer: Tokenizer, report: list[str]
) -> None:
    cases = mixed(tokenizer, 4, longest=60, new_tokens=(4, 6))
    report.append(f"SmolLM2, {await hold(model_folder, reference, cases, 2, 'fused')}")


async def test_two_ranks_of_transformers_code(
    eight_heads: Path, eight_heads_reference: Reference, tokenizer: Tokenizer, report: list[str]
) -> None:
    cases = mixed(tokenizer, 4, longest=60, new_tokens=(4, 6))
    line = await hold(eight_heads, eight_heads_reference, cases, 2, "transformers")
    report.append(f"8 heads, {line}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_rank_that_dies_or_stops_is_a_pause(
    model_folder: Path, reference: Reference, tokenizer: Tokenizer, number: int
) -> None:
    cases = mixed(tokenizer, 4, longest=60, new_tokens=(40, 40))
    async with running_engine(model_folder, n_blocks=200, max_rows=8, world_size=2) as engine:
        streams = [engine.submit(request) for request in requests(cases)]
        first = [await anext(aiter(stream)) for stream in streams]
        assert engine._workers.group is not None
        os.kill(engine._workers.group.pids[1], number)

        for case, stream, begun in zip(cases, streams, first, strict=True):
            tokens = [token.id for token in begun.tokens]
            async for emitted in stream:
                tokens += [token.id for token in emitted.tokens]
            reference.compare(case.prompt, tokens)

        async def restarted() -> bool:
            return engine.worker_restarts == 1

        await until(restarted)

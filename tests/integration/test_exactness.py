"""float32: the text of a request is what transformers' `generate` says for that prompt alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoConfig

from tests.integration.prompts import Case, branching, mixed
from tests.integration.reference import Reference
from tests.integration.running_engine import (
    BLOCK_SIZE,
    Text,
    finish_all,
    running_engine,
    until_idle,
)
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling
from workers.models.eos import eos_token_ids

pytestmark = pytest.mark.model
in_module_loop = pytest.mark.asyncio(loop_scope="module")

MOST_NEAR_TIES = 0.005
"""Of all tokens."""
ARRIVE_WITHIN = 3.0
"""Seconds over which the requests of a test come in."""

N_PROMPTS = [8, pytest.param(64, marks=pytest.mark.full)]
"""How many of the 64 prompts a variant takes."""


@pytest.fixture(scope="module")
def cases(tokenizer: Tokenizer) -> list[Case]:
    return mixed(tokenizer, 64, longest=200, new_tokens=(8, 32))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Path) -> AsyncIterator[Engine]:
    """With room for everything."""
    async with running_engine(model_folder) as running:
        yield running


async def run(engine: Engine, cases: list[Case], within: float = ARRIVE_WITHIN) -> list[Text]:
    requests = [
        GenerationRequest(case.prompt, Sampling(), max_new_tokens=case.max_new_tokens)
        for case in cases
    ]
    texts = await finish_all(engine, requests, within=within)
    await until_idle(engine)
    return texts


def check(
    name: str, reference: Reference, cases: list[Case], texts: list[Text], report: list[str]
) -> None:
    """Every text is the reference's, is as long as it should be, and near-ties are few."""
    n_ties = sum(
        reference.compare(case.prompt, text.tokens) for case, text in zip(cases, texts, strict=True)
    )
    for case, text in zip(cases, texts, strict=True):
        if text.finish_reason == "length":
            assert len(text.tokens) == case.max_new_tokens
        else:
            assert text.finish_reason == "eos_token"
            assert len(text.tokens) <= case.max_new_tokens
    n = sum(len(text.tokens) for text in texts)
    report.append(f"{name}: {len(cases)} prompts, {n} tokens as transformers, {n_ties} near-ties")
    # A single one is no rate where the tokens are few.
    assert n_ties <= max(1, MOST_NEAR_TIES * n)


@in_module_loop
@pytest.mark.parametrize(
    ("n", "longest", "most_new_tokens"),
    [
        (24, 200, 24),
        pytest.param(64, 200, 24, marks=pytest.mark.full),
        pytest.param(64, 600, 64, marks=pytest.mark.full),
    ],
)
async def test_prompts_that_arrive_at_random_times(
    engine: Engine,
    reference: Reference,
    tokenizer: Tokenizer,
    report: list[str],
    n: int,
    longest: int,
    most_new_tokens: int,
) -> None:
    cases = mixed(tokenizer, n, longest=longest, new_tokens=(8, most_new_tokens))

    texts = await run(engine, cases)

    check("mixed", reference, cases, texts, report)
    assert {text.finish_reason for text in texts} == {"length", "eos_token"}


@pytest.mark.parametrize("lookahead", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("n", N_PROMPTS)
async def test_prefill_in_chunks_of_16_tokens(
    model_folder: Path,
    reference: Reference,
    cases: list[Case],
    report: list[str],
    n: int,
    lookahead: int,
) -> None:
    async with running_engine(
        model_folder, max_batch_prefill_tokens=16, lookahead=lookahead
    ) as engine:
        texts = await run(engine, cases[:n])

    check(f"chunks of 16, {lookahead} ahead", reference, cases[:n], texts, report)


@pytest.mark.full
@pytest.mark.parametrize("n", [8, 64])
async def test_through_transformers_code(
    model_folder: Path, reference: Reference, cases: list[Case], report: list[str], n: int
) -> None:
    async with running_engine(
        model_folder, max_batch_prefill_tokens=32, model_impl="transformers"
    ) as engine:
        texts = await run(engine, cases[:n])

    check("transformers' code", reference, cases[:n], texts, report)


@pytest.mark.full
@pytest.mark.parametrize("n", [8, 64])
async def test_without_looking_ahead(
    model_folder: Path, reference: Reference, cases: list[Case], report: list[str], n: int
) -> None:
    async with running_engine(model_folder, lookahead=0) as engine:
        texts = await run(engine, cases[:n])

    check("no step ahead", reference, cases[:n], texts, report)


@pytest.mark.parametrize("lookahead", [1, pytest.param(0, marks=pytest.mark.full)])
@pytest.mark.parametrize("n", N_PROMPTS)
async def test_a_pool_so_small_that_requests_are_preempted(
    model_folder: Path,
    reference: Reference,
    cases: list[Case],
    report: list[str],
    n: int,
    lookahead: int,
) -> None:
    some = cases[:n]
    longest = max(len(case.prompt) + case.max_new_tokens for case in some)
    n_blocks = longest // BLOCK_SIZE + 3
    async with running_engine(
        model_folder, n_blocks=n_blocks, lookahead=lookahead, crowded=True
    ) as engine:
        # All but at once, so that they meet in the pool on a fast machine too.
        texts = await run(engine, some, within=0.1)
        n_preemptions = engine.core.n_preemptions

    check(f"{n_preemptions} preemptions, {lookahead} ahead", reference, some, texts, report)
    assert n_preemptions > 0


@in_module_loop
@pytest.mark.parametrize("n", [9, pytest.param(64, marks=pytest.mark.full)])
async def test_prompts_that_share_a_prefix(
    engine: Engine, reference: Reference, tokenizer: Tokenizer, report: list[str], n: int
) -> None:
    cases = branching(tokenizer, n, n_shared=100, longest_own=60, max_new_tokens=16)
    n_before = engine.core.n_hit_tokens

    texts = await run(engine, cases)

    n_hits = engine.core.n_hit_tokens - n_before
    check(f"{n_hits} prompt tokens hit", reference, cases, texts, report)
    # All but the first find the blocks that they share.
    assert n_hits >= (n - 1) * (100 // BLOCK_SIZE) * BLOCK_SIZE


@in_module_loop
async def test_an_answer_is_a_prefix_that_the_next_turn_hits(
    engine: Engine, reference: Reference, tokenizer: Tokenizer
) -> None:
    first = Case(tokenizer.encode("The history of the lighthouse begins"), 40)
    (answer,) = await run(engine, [first])
    turn = first.prompt + answer.tokens
    second = Case(turn + tokenizer.encode(" And of Italy?"), 16)
    n_before = engine.core.n_hit_tokens

    (followed,) = await run(engine, [second])

    n_hits = engine.core.n_hit_tokens - n_before
    reference.compare(first.prompt, answer.tokens)
    reference.compare(second.prompt, followed.tokens)
    # The last sampled token was never computed.
    assert n_hits == (len(turn) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert n_hits > len(first.prompt)


@pytest.fixture
def other_end(model_folder: Path, tmp_path: Path) -> Path:
    """The model with a placeholder for its end in the config; the tokenizer alone has it right."""
    for entry in model_folder.iterdir():
        if entry.name not in ("config.json", "generation_config.json"):
            (tmp_path / entry.name).symlink_to(entry)
    config = json.loads((model_folder / "config.json").read_text()) | {"eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.full
async def test_a_chat_ends_where_config_and_tokenizer_name_different_ends(
    other_end: Path, reference: Reference, tokenizer: Tokenizer
) -> None:
    ends = eos_token_ids(other_end, AutoConfig.from_pretrained(other_end))
    assert ends == [0, tokenizer.special_id("<|im_end|>")]
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer.encode(chat)

    async with running_engine(other_end) as engine:
        (text,) = await run(engine, [Case(prompt, 40)], within=0.0)

    assert text.finish_reason == "eos_token"
    assert text.tokens == reference.generate(prompt, 40, ends)
    assert len(text.tokens) < 40


def test_the_reference_is_what_generate_says(reference: Reference, cases: list[Case]) -> None:
    for case in cases[:4]:
        emitted = reference.generate(case.prompt, 8)
        assert reference.compare(case.prompt, emitted) == 0


def test_a_wrong_token_is_seen(reference: Reference, cases: list[Case]) -> None:
    prompt = cases[0].prompt
    emitted = reference.generate(prompt, 4)

    with pytest.raises(AssertionError, match="token 2 of 4"):
        reference.compare(prompt, [*emitted[:2], (emitted[2] + 1) % 1000, emitted[3]])


@pytest.mark.full
@pytest.mark.parametrize("model_impl", ["fused", "transformers"])
@pytest.mark.parametrize("max_batch_prefill_tokens", [16, 512])
@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("n_blocks", [48, 640])
async def test_128_tokens_in_all_variants(
    model_folder: Path,
    reference: Reference,
    tokenizer: Tokenizer,
    report: list[str],
    model_impl: str,
    max_batch_prefill_tokens: int,
    lookahead: int,
    n_blocks: int,
) -> None:
    cases = mixed(tokenizer, 64, longest=600, new_tokens=(128, 128))
    async with running_engine(
        model_folder,
        n_blocks=n_blocks,
        max_batch_prefill_tokens=max_batch_prefill_tokens,
        lookahead=lookahead,
        model_impl=model_impl,
        crowded=True,
    ) as engine:
        texts = await run(engine, cases)
        n_preemptions = engine.core.n_preemptions

    chunks = f"chunks of {max_batch_prefill_tokens}, {lookahead} ahead, {n_blocks} blocks"
    name = f"128 tokens, {model_impl}, {chunks}"
    check(name, reference, cases, texts, report)
    assert (n_preemptions > 0) == (n_blocks == 48)

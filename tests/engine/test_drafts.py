"""Drafts that workers verify: a text is the same with them, and comes in fewer steps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import convert

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.doubles.fake_engine_run import Running, collect, running
from tests.doubles.fake_worker import EOS, Behaviour
from tgi_async.wire.messages import Sampling, SpeculationConfig, Start

DRAFTS = SpeculationConfig(max_drafts=3)


def n_steps(run: Running) -> int:
    return run.steps.events.count("done")


@pytest.mark.parametrize("lookahead", [0, 1])
async def test_a_text_is_the_same_in_fewer_steps(tmp_path: Path, lookahead: int) -> None:
    async with running(Behaviour(), tmp_path, speculation=DRAFTS, lookahead=lookahead) as run:
        generation = run.submit("Hello", 40, sampling=Sampling(logprobs=True, top_n_tokens=2))
        found = await collect(generation)
        assert found.ids == run.expected("Hello", 40)
        assert found.text == run.tokenizer.decode(found.ids)
        assert [len(token.top) for token in found.tokens] == [2] * 40
        assert all(token.logprob == -0.5 for token in found.tokens)
        assert n_steps(run) < 35
        drafts = generation.drafts
        assert min(drafts.accepted, drafts.rejected) > 0
        assert drafts.accepted < 40


async def test_steps_with_drafts_are_decodes(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path, speculation=DRAFTS) as run:
        await run.generate([65] * 4, 40)
        assert [n for n in run.steps.prefills if n] == [4]


async def test_many_texts_are_the_same_where_blocks_are_short(tmp_path: Path) -> None:
    behaviour = Behaviour(n_blocks=20)
    async with running(behaviour, tmp_path, overcommit=100.0, speculation=DRAFTS) as run:
        prompts = [f"prompt {i}" * (1 + i % 3) for i in range(12)]
        texts = await asyncio.gather(*(run.generate(prompt, 20) for prompt in prompts))
        assert [text.ids for text in texts] == [run.expected(prompt, 20) for prompt in prompts]
        assert run.engine.core.n_preemptions > 0


async def test_texts_go_on_after_a_death(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={1: 6}), tmp_path, speculation=DRAFTS) as run:
        texts = await asyncio.gather(*(run.generate(f"prompt {i}", 30) for i in range(4)))
        assert [text.ids for text in texts] == [run.expected(f"prompt {i}", 30) for i in range(4)]
        assert run.engine.worker_restarts == 1
        starts = [convert(one["start"], Start) for one in run.starts]
        assert [one.speculation for one in starts] == [DRAFTS, DRAFTS]


@pytest.mark.parametrize("stop", ["o", "lo", "ok th", " w"])
async def test_a_stop_sequence_within_drafts_ends_the_text(tmp_path: Path, stop: str) -> None:
    text = "hello world, look there"
    behaviour = Behaviour(script=tiny_tokenizer().encode(text))
    async with running(behaviour, tmp_path, speculation=DRAFTS) as run:
        for prompt in "abcdefgh":
            generation = run.submit(prompt, 30, stop=(stop,), include_stop=True)
            found = await collect(generation)
            assert found.text == text[: text.index(stop) + len(stop)]
            assert found.finish_reason == "stop_sequence"
            assert generation.request.tokens[1:] == found.ids


async def test_an_end_token_within_drafts_ends_the_text(tmp_path: Path) -> None:
    async with running(Behaviour(eos_after=9), tmp_path, speculation=DRAFTS) as run:
        for prompt in "abcd":
            found = await run.generate(prompt, 30)
            assert found.ids == [*run.expected(prompt, 9), EOS]
            assert found.finish_reason == "eos_token"


async def test_the_worker_learns_whose_a_request_is(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path, speculation=DRAFTS) as run:
        generation = run.submit("Hi", 3, tenant="ann")
        assert generation.request.tenant == "ann"
        await collect(generation)

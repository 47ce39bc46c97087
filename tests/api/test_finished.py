from __future__ import annotations

import asyncio

import pytest

from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.api.finished import collect, collect_all, text_of
from tgi_async.errors import GenerationError
from tgi_async.generation import GenerationRequest, Token
from tgi_async.wire.messages import Sampling

REQUEST = GenerationRequest([1, 2], Sampling())


async def test_all_that_was_emitted_is_collected(engine: FakeEngine) -> None:
    finished = await collect(engine.submit(REQUEST))
    assert finished.text == "Hello there"
    assert len(finished.tokens) == 4
    assert finished.finish_reason == "eos_token"


async def test_what_is_not_waited_for_does_not_run_on(engine: FakeEngine) -> None:
    engine.wait_before = 1
    task = asyncio.create_task(collect(engine.submit(REQUEST)))
    await engine.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.generations[0].cancelled


async def test_the_first_failure_is_raised_and_ends_the_others(engine: FakeEngine) -> None:
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    with pytest.raises(GenerationError):
        await collect_all([engine.submit(REQUEST), engine.submit(REQUEST)])
    assert all(generation.cancelled for generation in engine.generations)


async def test_the_mean_log_probability_does_not_favour_short_texts(engine: FakeEngine) -> None:
    engine.batches = [[Token(1, "a", -1.0, False)] * 4, [Token(1, "b", -3.0, False)]]
    assert (await collect(engine.submit(REQUEST))).mean_logprob == pytest.approx(-1.4)


def test_a_special_token_adds_only_what_it_releases() -> None:
    assert text_of([*words("a"), EOS]) == "a"
    assert text_of([*words("a"), EOS._replace(text="b")]) == "ab"

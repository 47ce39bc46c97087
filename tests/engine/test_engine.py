from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.doubles.fake_engine_run import collect, running, until
from tests.doubles.fake_worker import EOS, Behaviour, expected_prompt_logprobs, expected_prompt_top
from tgi_async.errors import (
    GenerationError,
    IncompleteGeneration,
    StartError,
    Unhealthy,
    ValidationError,
)
from tgi_async.generation import TopToken
from tgi_async.scheduler.blocks import Salt
from tgi_async.wire.messages import Sampling


def spelling(text: str, **behaviour: Any) -> Behaviour:
    """A model that writes this text, a character a token."""
    return Behaviour(script=tiny_tokenizer().encode(text), **behaviour)


async def test_tokens_arrive_in_order_and_their_texts_are_the_text(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        found = await run.generate("Hello", 40)
        assert found.ids == run.expected("Hello", 40)
        assert found.text == run.tokenizer.decode(found.ids)
        assert found.finish_reason == "length"


async def test_a_slow_consumer_gets_everything_at_its_next_look(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        slow = run.submit("slow", 50)
        await until(lambda: run.engine.n_running + run.engine.n_waiting == 0)
        found = await collect(slow)
        assert found.n_looks == 1
        assert found.ids == run.expected("slow", 50)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)


async def test_a_first_token_waits_for_no_other(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        for attempt in range(10):
            generation = run.submit(f"attempt {attempt}", 20)
            first = await anext(generation)
            assert len(first.tokens) == 1
            assert len((await collect(generation)).ids) == 19


async def test_many_requests_each_get_their_own_text(tmp_path: Path) -> None:
    async with running(Behaviour(n_blocks=20), tmp_path, overcommit=100.0) as run:
        prompts = [f"prompt {i}" * (1 + i % 3) for i in range(12)]
        texts = await asyncio.gather(*(run.generate(prompt, 30) for prompt in prompts))
        assert [text.ids for text in texts] == [run.expected(prompt, 30) for prompt in prompts]
        assert run.engine.core.n_preemptions > 0
        assert run.engine.used_blocks == 0
        assert run.engine.worker_restarts == 0


async def test_chunks_beside_decodes_follow_from_what_the_worker_measured(tmp_path: Path) -> None:
    slow = Behaviour(max_batch_prefill_tokens=128, prefill_costs={16: 0.05, 64: 0.20})
    async with running(slow, tmp_path, max_rows=3) as run:
        assert run.engine.core.budget.beside_decodes == [16, 16, 16]
    async with running(Behaviour(), tmp_path, max_rows=3) as run:
        assert run.engine.core.budget.beside_decodes == []


async def test_a_shared_prefix_is_computed_once(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        first = await run.generate("The same beginning, A")
        second = await run.generate("The same beginning, B")
        assert first.ids == run.expected("The same beginning, A")
        assert second.ids == run.expected("The same beginning, B")
        assert run.steps.n_cached == [0, 20]


async def test_a_salt_keeps_equal_prompts_apart_from_its_place_on(tmp_path: Path) -> None:
    tenant = Salt(0, 1, b"tenant".ljust(16))
    image = Salt(14, 16, b"image".ljust(16))
    async with running(Behaviour(), tmp_path) as run:
        for salts in ((), (tenant,), (image,), (tenant,), (image,), ()):
            answer = await run.generate("The same beginning, A", salts=salts)
            assert answer.ids == run.expected("The same beginning, A")
        assert run.steps.n_cached == [0, 0, 12, 20, 20, 20]


async def test_a_client_that_leaves_frees_its_blocks_while_steps_are_in_flight(
    tmp_path: Path,
) -> None:
    async with running(Behaviour(step_seconds=0.02), tmp_path) as run:
        leaving, staying = run.submit("leaving", 200), run.submit("staying", 20)
        await anext(leaving)
        assert run.steps.events.count("sent") > run.steps.events.count("done")
        leaving.cancel()
        leaving.cancel()
        assert run.engine.n_running == 1
        assert (await collect(staying)).ids == run.expected("staying", 20)
        await until(lambda: run.engine.used_blocks == 0)
        assert run.engine.resident_tokens == 0


async def test_a_client_that_leaves_the_queue_is_forgotten(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.01), tmp_path, max_rows=1) as run:
        first, second, third = (run.submit(prompt, 10) for prompt in ("one", "two", "three"))
        await anext(first)
        assert run.engine.n_waiting == 2
        second.cancel()
        assert run.engine.n_waiting == 1
        assert (await collect(third)).ids == run.expected("three", 10)
        await until(lambda: run.engine.used_blocks == 0)


async def test_a_cancelled_generation_ends_for_whoever_waits_for_it(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.2), tmp_path) as run:
        generation = run.submit("waiting")
        waiting = asyncio.create_task(collect(generation))
        await asyncio.sleep(0)
        generation.cancel()
        assert (await waiting).tokens == []


async def test_a_cancelled_generation_ends_after_what_it_had_emitted(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.01), tmp_path) as run:
        generation = run.submit("emitting", 200)
        await until(lambda: len(generation._buffer) > 2)
        generation.cancel()
        found = await collect(generation)
        assert found.finish_reason is None
        assert found.ids == run.expected("emitting", len(found.ids))


async def test_a_look_may_be_cancelled_and_repeated(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.02), tmp_path) as run:
        generation = run.submit("patience", 8)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(generation), 0.001)
        assert (await collect(generation)).ids == run.expected("patience", 8)


@pytest.mark.parametrize(("include", "text"), [(True, "one END"), (False, "one ")])
async def test_a_stop_sequence_ends_the_text_across_tokens(
    tmp_path: Path, include: bool, text: str
) -> None:
    async with running(spelling("one END and more"), tmp_path) as run:
        found = await run.generate("?", 200, stop=("END", "never"), include_stop=include)
        assert run.engine.n_running == 0
        assert found.text == text
        assert found.finish_reason == "stop_sequence"
        assert len(found.tokens) == len("one END")
        await until(lambda: run.engine.used_blocks == 0)


async def test_the_beginning_of_a_stop_sequence_is_held_back_until_it_is_none(
    tmp_path: Path,
) -> None:
    async with running(spelling("abENabEND"), tmp_path) as run:
        found = await run.generate("?", stop=("END",), include_stop=False)
        assert [token.text for token in found.tokens] == [*"ab", "", "", "ENa", "b", "", "", ""]


async def test_what_is_held_back_at_the_end_is_emitted_with_the_last_token(tmp_path: Path) -> None:
    async with running(spelling("abEN"), tmp_path) as run:
        found = await run.generate("?", 4, stop=("END",), include_stop=False)
        assert found.text == "abEN"
        assert found.finish_reason == "length"


async def test_half_a_character_waits_for_its_other_half(tmp_path: Path) -> None:
    async with running(spelling("한"), tmp_path) as run:
        assert [token.text for token in (await run.generate("?", 3)).tokens] == ["", "", "한"]
        cut = await run.generate("!", 2)
        assert cut.text == "\ufffd"


async def test_the_end_of_sequence_token_ends_and_adds_no_text(tmp_path: Path) -> None:
    async with running(Behaviour(eos_after=5), tmp_path) as run:
        found = await run.generate("short")
        assert found.finish_reason == "eos_token"
        assert found.ids == run.expected("short", 6)
        assert found.tokens[-1].id == EOS
        assert found.tokens[-1].special
        assert found.text == run.tokenizer.decode(found.ids)
        assert len(found.text) == 5


async def test_ignore_eos_goes_on(tmp_path: Path) -> None:
    async with running(Behaviour(eos_after=5), tmp_path) as run:
        found = await run.generate("long", ignore_eos=True)
        assert found.ids == run.expected("long", 16)
        assert found.finish_reason == "length"


async def test_a_request_may_have_ends_of_its_own(tmp_path: Path) -> None:
    async with running(spelling("one two!"), tmp_path) as run:
        [end] = run.tokenizer.encode("t")
        for ignore_eos in (False, True):
            found = await run.generate("x", stop_token_ids=(end, 7), ignore_eos=ignore_eos)
            assert (found.text, found.finish_reason) == ("one t", "eos_token")
        assert (await run.generate("x", 8)).text == "one two!"


async def test_a_text_under_a_grammar_ends_by_any_end_that_the_worker_knows(tmp_path: Path) -> None:
    [end] = tiny_tokenizer().encode("!")
    async with running(spelling("ab!cd"), tmp_path, stop_token_ids=[end]) as run:
        assert (await run.generate("x", 5)).text == "ab!cd"
        found = await run.generate("x", 5, grammar="any", ignore_eos=True)
        assert (found.text, found.finish_reason) == ("ab!", "eos_token")


async def test_without_max_new_tokens_the_longest_sequence_is_the_limit(tmp_path: Path) -> None:
    async with running(Behaviour(max_total_tokens=50), tmp_path) as run:
        assert run.engine.max_total_tokens == 50
        assert len((await run.generate("12345", None)).tokens) == 45


@pytest.mark.parametrize(
    ("prompt", "n", "named"),
    [
        ([], 5, "at least one prompt token"),
        ([1], 0, "Given: 1 and 0"),
        ([1] * 50, 1, "must be <= 50"),
        ([1] * 50, None, "must be <= 50"),
        ([1, 258], 5, "has the token 258"),
    ],
)
async def test_what_can_never_fit_is_refused_by_the_name_of_the_limit(
    tmp_path: Path, prompt: list[int], n: int | None, named: str
) -> None:
    async with running(Behaviour(max_total_tokens=50), tmp_path) as run:
        with pytest.raises(ValidationError, match=named):
            run.submit(prompt, n)
        assert (run.engine.n_waiting, run.engine.used_blocks) == (0, 0)


async def test_the_pool_can_be_made_smaller_than_the_memory(tmp_path: Path) -> None:
    async with running(Behaviour(n_blocks=64), tmp_path, max_batch_total_tokens=41) as run:
        assert run.engine.n_blocks == 10
        assert run.engine.max_total_tokens == 40


async def test_a_pool_without_a_block_is_refused(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path, max_batch_total_tokens=3, launch=False) as run:
        with pytest.raises(StartError, match="--max-batch-total-tokens"):
            await run.engine.launch(lambda loading: None)


async def test_the_text_is_a_function_of_the_seed(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        samplings = [Sampling(do_sample=True, seed=seed) for seed in (7, 7, 2**64 - 1)]
        found = [await run.generate("dice", sampling=sampling) for sampling in samplings]
        assert found[0].ids == found[1].ids == run.expected("dice", 16, samplings[0])
        assert found[2].ids == run.expected("dice", 16, samplings[2])
        assert found[0].ids != found[2].ids
        assert run.submit("dice", sampling=samplings[2]).seed == 2**64 - 1


@pytest.mark.parametrize("length", [1, 2, 32, 33, 70])
async def test_prompt_logprobs_are_one_a_token_however_it_is_cut(
    tmp_path: Path, length: int
) -> None:
    async with running(Behaviour(max_batch_prefill_tokens=8), tmp_path) as run:
        prompt = [1 + i % 90 for i in range(length)]
        generation = run.submit(prompt, 2, prompt_logprobs=True)
        await anext(generation)
        assert generation.prompt_logprobs == expected_prompt_logprobs(prompt)
        unscored = run.submit(prompt, 2)
        await collect(unscored)
        assert unscored.prompt_logprobs == []


async def test_the_likeliest_tokens_of_a_prompt_are_named_where_they_are_wanted(
    tmp_path: Path,
) -> None:
    async with running(Behaviour(max_batch_prefill_tokens=4), tmp_path) as run:
        prompt = list(range(1, 12))
        generation = run.submit(prompt, 2, prompt_logprobs=True, prompt_top_n_tokens=2)
        await collect(generation)
        assert generation.prompt_top_tokens == [
            tuple(
                TopToken(one.id, run.tokenizer.token_text(one.id), one.logprob, False)
                for one in ones
            )
            for ones in expected_prompt_top(prompt, 2)
        ]
        scored = run.submit(prompt, 2, prompt_logprobs=True)
        await collect(scored)
        assert scored.prompt_top_tokens == []


async def test_logprobs_and_top_tokens_come_with_their_names(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        found = await run.generate("top", 3, sampling=Sampling(logprobs=True, top_n_tokens=2))
        for token in found.tokens:
            assert token.logprob == -0.5
            assert [(one.id, one.text, one.logprob) for one in token.top] == [
                (65, "b", 0.0),
                (66, "c", -0.5),
            ]


async def test_a_row_that_fails_fails_alone(tmp_path: Path) -> None:
    async with running(Behaviour(row_error_on=3), tmp_path) as run:
        good, bad = run.submit("good", 30), run.submit([1, 2, 3], 30)
        with pytest.raises(GenerationError, match="not to the model's taste") as raised:
            await collect(bad)
        assert raised.value.status == 424
        assert (await collect(good)).ids == run.expected("good", 30)
        assert run.engine.worker_restarts == 0
        await until(lambda: run.engine.used_blocks == 0)


async def test_the_next_step_is_sent_before_the_result_of_the_last(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        await run.generate("ahead", 8)
        assert run.steps.events == ["sent", *["sent", "done"] * 7, "done"]


async def test_without_lookahead_each_step_waits_for_the_last(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path, lookahead=0) as run:
        found = await run.generate("one by one", 8)
        assert found.ids == run.expected("one by one", 8)
        assert run.steps.events == ["sent", "done"] * 8


async def test_a_long_prompt_is_computed_in_chunks(tmp_path: Path) -> None:
    async with running(Behaviour(max_batch_prefill_tokens=8), tmp_path) as run:
        await run.generate("x" * 20, 1)
        assert run.steps.prefills == [8, 8, 4]


async def test_times_are_reported(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.01), tmp_path, max_rows=1) as run:
        first, second = run.submit("first", 5), run.submit("second", 5)
        await collect(first)
        await collect(second)
        assert second.timings.queued >= first.timings.queued + 0.03
        assert second.timings.inference >= 0.04


async def test_stopping_tells_live_requests_that_they_are_incomplete(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.01), tmp_path, max_rows=1) as run:
        live, waiting = run.submit("live", 100), run.submit("waiting", 100)
        await anext(live)
        await run.engine.stop(1)
        with pytest.raises(IncompleteGeneration):
            await collect(live)
        with pytest.raises(Unhealthy, match="shutting down"):
            await collect(waiting)
        with pytest.raises(Unhealthy):
            run.submit("late")
        assert not run.engine.ready


async def test_a_retired_engine_is_not_ready_and_serves(tmp_path: Path) -> None:
    async with running(Behaviour(step_seconds=0.01), tmp_path) as run:
        live = run.submit("live", 10)
        run.engine.retire()
        assert not run.engine.ready
        late = run.submit("late", 10)
        assert (await collect(live)).ids == run.expected("live", 10)
        assert (await collect(late)).ids == run.expected("late", 10)


async def test_the_sockets_are_in_a_folder_of_this_user_alone(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
        assert {path.name for path in run.folder.iterdir()} == {"replies-1", "steps-1-0"}

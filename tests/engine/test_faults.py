"""The engine, while its workers die and talk nonsense."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.doubles.fake_engine_run import Running, alive, collect, running, until
from tests.doubles.fake_worker import Behaviour, expected_prompt_logprobs, expected_prompt_top
from tgi_async.errors import GenerationError, IncompleteGeneration, StartError, Unhealthy
from tgi_async.wire.codec import WireError
from tgi_async.wire.messages import CacheConfig, Sampling, Start

POISON = 3


async def serve_twelve(run: Running, n: int = 40) -> None:
    """Twelve streams at once, half of them sampled, each with the text of an undisturbed run."""
    prompts = [f"stream {i}, " * (1 + i % 4) for i in range(12)]
    samplings = [Sampling(do_sample=bool(i % 2), seed=i) for i in range(12)]
    asked = list(zip(prompts, samplings, strict=True))
    generations = [run.submit(prompt, n, sampling=sampling) for prompt, sampling in asked]
    found = await asyncio.gather(*map(collect, generations))
    assert [one.ids for one in found] == [run.expected(prompt, n, how) for prompt, how in asked]
    assert [one.text for one in found] == [run.tokenizer.decode(one.ids) for one in found]
    assert {one.finish_reason for one in found} == {"length"}


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("n_blocks", [400, 40])
async def test_deaths_in_mid_stream_lose_and_double_nothing(
    tmp_path: Path, lookahead: int, n_blocks: int
) -> None:
    behaviour = Behaviour(n_blocks=n_blocks, die_at={1: 13, 2: 5, 3: 24})
    async with running(behaviour, tmp_path, lookahead=lookahead) as run:
        await serve_twelve(run)
        assert run.engine.worker_restarts == 3
        assert run.engine.used_blocks == 0
        assert run.steps.events.count("sent") == run.steps.events.count("done") + (
            run.steps.events.count("lost")
        )


async def test_a_worker_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    async with running(Behaviour(n_blocks=400, step_seconds=0.005), tmp_path) as run:
        serving = asyncio.create_task(serve_twelve(run))
        await until(lambda: run.steps.events.count("done") > 15)
        os.kill(run.starts[0]["pid"], signal.SIGKILL)
        await serving
        assert len(run.starts) == 2


async def test_a_worker_that_died_idle_is_replaced(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        os.kill(run.starts[0]["pid"], signal.SIGKILL)
        await until(lambda: run.engine.worker_restarts == 1 and run.engine.ready)
        assert (await run.generate("again")).ids == run.expected("again")


async def test_the_engine_is_not_ready_while_a_worker_loads_and_takes_requests(
    tmp_path: Path,
) -> None:
    async with running(Behaviour(die_at={1: 3}, load_seconds=0.2), tmp_path) as run:
        first = run.submit("first")
        await until(lambda: not run.engine.ready)
        second = run.submit("second")
        assert (await collect(second)).ids == run.expected("second")
        assert (await collect(first)).ids == run.expected("first")
        assert run.engine.ready


async def test_a_request_cancelled_while_a_worker_loads_is_not_replayed(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={1: 3}, load_seconds=0.2), tmp_path) as run:
        leaving, staying = run.submit("leaving"), run.submit("staying")
        await until(lambda: not run.engine.ready)
        leaving.cancel()
        assert (await collect(staying)).ids == run.expected("staying")
        assert run.steps.n_cached == [0, 0, 0]


async def test_a_stop_sequence_across_a_death_is_found(tmp_path: Path) -> None:
    script = [id + 32 for id in (37, 46, 36)]  # "END", one lower-case letter a token
    async with running(Behaviour(script=script, die_at={1: 3}), tmp_path) as run:
        stop = run.tokenizer.decode(script)
        found = await run.generate("?", stop=(stop,), include_stop=False)
        assert (found.text, found.finish_reason) == ("", "stop_sequence")
        assert run.engine.worker_restarts == 1


@pytest.mark.parametrize("step", [1, 3, 6])
async def test_prompt_logprobs_come_once_though_the_prompt_is_computed_twice(
    tmp_path: Path, step: int
) -> None:
    behaviour = Behaviour(max_batch_prefill_tokens=8, die_at={1: step})
    async with running(behaviour, tmp_path) as run:
        prompt = list(range(1, 34))
        generation = run.submit(prompt, 6, prompt_logprobs=True, prompt_top_n_tokens=1)
        await collect(generation)
        assert generation.prompt_logprobs == expected_prompt_logprobs(prompt)
        top = [[one.logprob for one in ones] for ones in generation.prompt_top_tokens]
        expected = expected_prompt_top(prompt, 1)
        assert top == [[one.logprob for one in ones] for ones in expected]
        assert run.engine.worker_restarts == 1


async def test_three_deaths_without_progress_fail_what_lives_and_nothing_after(
    tmp_path: Path,
) -> None:
    async with running(Behaviour(die_on=POISON), tmp_path) as run:
        with pytest.raises(GenerationError, match="SIGKILL, again and again") as raised:
            await run.generate([1, 2, POISON])
        assert raised.value.status == 424
        assert run.engine.worker_restarts == 3
        assert (await run.generate("innocent")).ids == run.expected("innocent")
        assert run.engine.used_blocks == 0


async def test_a_chunk_of_a_prompt_is_no_progress(tmp_path: Path) -> None:
    async with running(Behaviour(max_batch_prefill_tokens=8, die_at={0: 2}), tmp_path) as run:
        with pytest.raises(GenerationError):
            await run.generate("three chunks of a prompt")
        assert run.engine.worker_restarts == 3


async def test_deaths_with_progress_between_them_fail_nobody(tmp_path: Path) -> None:
    behaviour = Behaviour(die_at={0: 40}, max_total_tokens=400, n_blocks=128)
    async with running(behaviour, tmp_path) as run:
        found = await run.generate("on and on", 300)
        assert found.ids == run.expected("on and on", 300)
        assert run.engine.worker_restarts > 5


async def test_a_request_that_kills_every_few_tokens_fails(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={0: 4}), tmp_path) as run:
        with pytest.raises(GenerationError, match="again and again with this request"):
            await run.generate("on and on", 100)
        assert run.engine.worker_restarts == 6


async def test_the_error_says_how_the_worker_died(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={0: 1}, exit_status=7), tmp_path) as run:
        with pytest.raises(GenerationError, match="worker 0 exited with status 7, again and again"):
            await run.generate("?")


@pytest.mark.parametrize("nonsense", ["garbage_at", "other_step_at"])
async def test_nonsense_from_a_worker_is_its_death(tmp_path: Path, nonsense: str) -> None:
    faults: dict[str, Any] = {nonsense: {1: 4, 2: 2}}
    async with running(Behaviour(**faults), tmp_path) as run:
        assert (await run.generate("sense", 20)).ids == run.expected("sense", 20)
        assert run.engine.worker_restarts == 2


@pytest.mark.parametrize("nonsense", ["garbage_at", "other_step_at"])
async def test_nonsense_without_end_fails_the_request(tmp_path: Path, nonsense: str) -> None:
    faults: dict[str, Any] = {nonsense: {0: 1}}
    async with running(Behaviour(**faults), tmp_path) as run:
        with pytest.raises(GenerationError, match="again and again with this request"):
            await run.generate("sense", 20)


async def test_a_later_worker_gets_the_first_ones_cache(tmp_path: Path) -> None:
    async with running(Behaviour(n_blocks=33, die_at={1: 2}), tmp_path) as run:
        await run.generate("x")
        asked = [msgspec.convert(one["start"], Start) for one in run.starts]
        assert [(one.cache, one.batch.max_prefill_tokens) for one in asked] == [
            (CacheConfig(), 0),
            (CacheConfig(n_blocks=[33], block_size=4), 32),
        ]


async def test_a_smaller_cache_after_a_death_ends_the_engine(tmp_path: Path) -> None:
    async with running(Behaviour(n_blocks=33, blocks_later=32, die_at={1: 2}), tmp_path) as run:
        with pytest.raises(GenerationError, match="32 blocks"):
            await run.generate("x")
        assert isinstance(run.engine.failed.exception(), StartError)


async def test_a_refusal_is_the_message_of_the_start(tmp_path: Path) -> None:
    behaviour = Behaviour(refuse={1: "no such model; use another"})
    async with running(behaviour, tmp_path, launch=False) as run:
        with pytest.raises(StartError, match=r"^no such model; use another$"):
            await run.engine.launch(lambda loading: None)


async def test_a_death_while_loading_is_reported_at_start(tmp_path: Path) -> None:
    async with running(Behaviour(die_loading=[1]), tmp_path, launch=False) as run:
        with pytest.raises(StartError, match="worker 0 was killed by SIGKILL"):
            await run.engine.launch(lambda loading: None)
        assert not run.engine.ready


async def test_a_result_before_ready_is_reported_at_start(tmp_path: Path) -> None:
    async with running(Behaviour(early_result=True), tmp_path, launch=False) as run:
        with pytest.raises(StartError, match="before it was ready"):
            await run.engine.launch(lambda loading: None)


async def test_a_command_that_is_not_there_is_reported_at_start(tmp_path: Path) -> None:
    command = (str(tmp_path / "nowhere"),)
    async with running(Behaviour(), tmp_path, launch=False, command=command) as run:
        with pytest.raises(StartError, match="No such file"):
            await run.engine.launch(lambda loading: None)


async def test_deaths_while_loading_again_are_tried_again(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={1: 3}, die_loading=[2, 3]), tmp_path) as run:
        assert (await run.generate("third time")).ids == run.expected("third time")
        assert len(run.starts) == 4


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(die_at={1: 3}, die_loading=[2, 3, 4]), "SIGKILL"),
        (Behaviour(die_at={1: 3}, refuse=dict.fromkeys((2, 3, 4), "no weights")), "no weights"),
    ],
)
async def test_a_worker_gone_for_good_fails_all_and_takes_no_more(
    tmp_path: Path, behaviour: Behaviour, reason: str
) -> None:
    async with running(behaviour, tmp_path) as run:
        with pytest.raises(GenerationError, match=reason):
            await run.generate("live")
        assert run.engine.failed.exception() is not None
        assert not run.engine.ready
        assert run.engine.n_running == run.engine.n_waiting == 0
        with pytest.raises(Unhealthy, match="gone for good"):
            run.submit("late")


async def test_stopping_while_a_worker_loads_leaves_nothing(tmp_path: Path) -> None:
    async with running(Behaviour(die_at={1: 3}), tmp_path) as run:
        run.behaviour.load_seconds = 30
        os.environ["FAKE_WORKER"] = run.behaviour.environment()
        live = run.submit("live")
        await until(lambda: len(run.starts) == 2)
        await run.engine.stop(0.1)
        with pytest.raises(IncompleteGeneration):
            await collect(live)
        assert not alive(run.starts[1]["pid"])


async def test_a_worker_that_is_cancelled_while_starting_leaves_nothing(tmp_path: Path) -> None:
    async with running(Behaviour(load_seconds=30), tmp_path, launch=False) as run:
        launching = asyncio.create_task(run.engine.launch(lambda loading: None))
        await until(lambda: len(run.starts) == 1)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        assert not alive(run.starts[0]["pid"])


async def test_a_worker_that_does_not_answer_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with running(Behaviour(deaf_at={1: 2}), tmp_path) as run:
        live = run.submit("live")
        await anext(live)
        await run.engine.stop(0.05)
        assert not alive(run.starts[0]["pid"])
        with pytest.raises(IncompleteGeneration):
            await collect(live)


async def test_stopping_twice_and_before_launch_is_fine(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path, launch=False) as run:
        await run.engine.stop(0)
        await run.engine.stop(0)


async def test_no_result_is_lost_where_a_worker_takes_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Behaviour(), tmp_path) as run:
        await run.generate("before")
        channel = run.engine._workers.group._channel  # type: ignore[union-attr]

        def refuse(message: object) -> None:
            raise WireError("too large")

        monkeypatch.setattr(channel, "send", refuse)
        assert (await run.generate("resent")).ids == run.expected("resent")
        assert run.engine.worker_restarts == 1

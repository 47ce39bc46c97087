from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from tests.helpers.loading import load
from tests.helpers.tiny_llama import VOCABULARY, save_tiny_llama
from tgi_async.supervisor import WorkerGroup
from tgi_async.wire.messages import (
    Admit,
    BatchConfig,
    CacheConfig,
    ModelConfig,
    Ready,
    RowError,
    Run,
    Sampling,
    SpeculationConfig,
    Start,
    Step,
    StepCost,
    StepDone,
)
from tgi_async.wire.step_costs import StepCosts
from workers import step_costs
from workers.executor import Executor
from workers.models.loading import Loaded
from workers.runner import Runner
from workers.step_costs import CostPlan, StepProbe, StepSizes, decode_sizes, measured, sizes

CPU = torch.device("cpu")
BLOCK_SIZE = 4
PROMPT = [11, 12, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["fused", "transformers"])
def model(folder: Path, request: pytest.FixtureRequest) -> Loaded:
    return load(folder, torch.float32, CPU, implementation=request.param)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time does not get short, however slow the machine is."""
    monkeypatch.setattr(step_costs, "SECONDS", 1000.0)


class Machine:
    """Runs steps as a worker does that takes a second for each position."""

    def __init__(self, fails_from: int = 1000, compiles_for: float = 0.0) -> None:
        self.now = 0.0
        self.steps: list[Step] = []
        self.rows: dict[int, list[int]] = {}
        self.written: set[tuple[int, int]] = set()
        """(block, offset)"""
        self._lengths: dict[int, int] = {}
        self._fails_from = fails_from
        self._compiles_for = compiles_for
        self._known: set[tuple[int, bool]] = set()

    def run(self, step: Step) -> StepDone:
        """Hold the step to what the router promises."""
        self.steps.append(step)
        for row in step.release:
            del self.rows[row], self._lengths[row]
        for admit in step.admit:
            assert admit.row not in self.rows
            assert 0 <= admit.n_cached < len(admit.tokens)
            assert max(admit.tokens) < VOCABULARY
            self.rows[admit.row] = admit.blocks
            self._lengths[admit.row] = admit.n_cached
        before = set(self.written)
        new: set[tuple[int, int]] = set()
        for run in step.run:
            end = self._lengths[run.row] + run.n
            places = [(self.rows[run.row][at // 4], at % 4) for at in range(end)]
            assert before.issuperset(places[: -run.n])
            assert new.isdisjoint(places[-run.n :])
            new.update(places[-run.n :])
            self._lengths[run.row] = end
        self.written |= new
        n = sum(run.n for run in step.run)
        kind = (n, bool(step.admit))
        self.now += n + (0 if kind in self._known else self._compiles_for)
        self._known.add(kind)
        errors = [RowError(run.row, "too much") for run in step.run if n >= self._fails_from]
        return StepDone(step.step, [], [], errors, 0.0, 0.0)

    def probe(
        self, max_rows: int = 8, n_blocks: int = 100, longest: int = 400, compiles: bool = False
    ) -> StepProbe:
        return StepProbe(
            self.run,
            StepSizes(max_rows, n_blocks, BLOCK_SIZE, longest),
            VOCABULARY,
            lambda: self.now,
            compiles,
        )


def test_the_sizes_that_matter_most_come_first() -> None:
    assert sizes(16, 256, 256) == [16, 256, 32, 64, 128]
    assert sizes(16, 40, 40) == [16, 40, 32]
    assert sizes(16, 9, 9) == sizes(16, 16, 16) == []
    assert decode_sizes(24) == [1, 8, 4, 16, 2, 24]
    assert decode_sizes(3) == [1, 3, 2]
    assert decode_sizes(2) == [1, 2]
    assert decode_sizes(1) == decode_sizes(0) == []


def test_when_the_time_is_up_there_are_two() -> None:
    slow = [16, 256, 32, 64]
    assert measured(slow, lambda n: n / 100) == [StepCost(16, 0.16), StepCost(256, 2.56)]
    quick = [1, 8, 4, 16, 2, 32, 64]
    assert [one.n_tokens for one in measured(quick, lambda n: n / 500)] == [1, 2, 4, 8, 16, 32]
    assert measured([], lambda n: 0.0) == []


def test_nothing_is_known_of_steps_that_fail() -> None:
    assert measured([1, 2, 4], lambda n: None if n == 4 else 0.0) == []


def test_steps_are_such_as_the_router_sends(unhurried: None) -> None:
    machine = Machine()
    plan = CostPlan(largest_chunk=64, most_decodes=8)
    plan.measure(machine.probe())
    assert plan.prefill == [StepCost(n, float(n)) for n in (16, 32, 64)]
    assert [StepCosts(plan.decode).seconds(n) for n in (1, 2, 4, 8)] == [1.0, 2.0, 4.0, 8.0]
    assert machine.rows == {}
    assert [one.step for one in machine.steps] == list(range(1, len(machine.steps) + 1))


def test_decodes_have_a_context_though_no_chunk_was_measured(unhurried: None) -> None:
    machine = Machine()
    plan = CostPlan(most_decodes=4)
    plan.measure(machine.probe())
    assert plan.prefill == []
    assert machine.steps[0].run == [Run(0, 128)]
    assert {admit.n_cached for step in machine.steps[1:] for admit in step.admit} == {128}


@pytest.mark.parametrize("longest", [1, 2, 3, 40, 1000])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 9, 34])
@pytest.mark.parametrize("max_rows", [1, 2, 9])
@pytest.mark.parametrize("compiles", [False, True])
def test_steps_fit_into_what_there_is(
    unhurried: None, max_rows: int, n_blocks: int, longest: int, compiles: bool
) -> None:
    machine = Machine()
    plan = CostPlan(largest_chunk=64, most_decodes=9)
    plan.measure(machine.probe(max_rows, n_blocks, longest, compiles))
    blocks = {block for step in machine.steps for one in step.admit for block in one.blocks}
    assert blocks <= set(range(n_blocks))
    rows = {one.row for step in machine.steps for one in step.admit}
    assert rows <= set(range(max_rows))
    assert all(len(a.tokens) <= longest for step in machine.steps for a in step.admit)
    assert machine.rows == {}


def test_kernels_that_are_made_meanwhile_do_not_count(unhurried: None) -> None:
    machine = Machine(compiles_for=500.0)
    plan = CostPlan(largest_chunk=64, most_decodes=8)
    plan.measure(machine.probe(compiles=True))
    assert plan.prefill == [StepCost(n, float(n)) for n in (16, 32, 64)]
    assert [StepCosts(plan.decode).seconds(n) for n in (1, 2, 4, 8)] == [1.0, 2.0, 4.0, 8.0]


def test_a_step_that_fails_ends_the_measuring(unhurried: None) -> None:
    machine = Machine(fails_from=8)
    plan = CostPlan(largest_chunk=64, most_decodes=8)
    plan.measure(machine.probe())
    assert (plan.prefill, plan.decode, machine.rows) == ([], [], {})


def test_what_a_model_costs_is_measured_and_leaves_nothing_behind(
    model: Loaded, unhurried: None
) -> None:
    executor = Executor(model, CPU, 2, 120, 64, BLOCK_SIZE)
    plan = CostPlan(largest_chunk=64, most_decodes=8)
    runner = executor.serving(40, None, plan)
    untouched = executor.serving(40)
    assert [one.n_tokens for one in plan.prefill] == [16, 32, 64]
    assert all(0 < one.seconds < 60 for one in plan.prefill)
    decode = StepCosts(plan.decode)
    assert decode.seconds(8) >= decode.seconds(1) > 0
    assert isinstance(runner, Runner)
    assert isinstance(untouched, Runner)
    step = Step(1, [], [Admit(0, PROMPT, 3, 0, [7], Sampling())], [], [Run(0, 3)])
    found, due = (one.collect(one.launch(step)).sampled for one in (runner, untouched))
    assert found == due


async def test_two_ranks_measure_together_and_serve_then(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    group = WorkerGroup(tmp_path_factory.mktemp("s"), 1, 2)
    start = Start(
        ModelConfig(str(folder), "float32", "transformers"),
        BatchConfig(max_rows=2, max_prefill_tokens=128),
        CacheConfig(memory=4_000_000, block_size=16),
        speculation=SpeculationConfig(3),
    )
    try:
        async with asyncio.timeout(60):
            ready = await group.launch(start, lambda loading: None)
            group.send(Step(1, [], [Admit(0, PROMPT, 3, 0, [0], Sampling())], [], [Run(0, 3)]))
            done = await group.receive()
            await group.stop(30.0)
    finally:
        await group.kill()
    assert ready.prefill_costs[0].n_tokens == 16
    assert ready.prefill_costs[-1].n_tokens == 64
    assert isinstance(done, StepDone)
    assert len(done.sampled) == 1
    assert isinstance(ready, Ready)

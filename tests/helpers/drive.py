"""The scheduler's core and the runner in one process and one thread."""

from __future__ import annotations

import threading
from collections.abc import Collection

import torch

from tests.doubles.device_doubles import Counted, HostSampling, Replaying
from tests.helpers.tiny_tokenizer import END
from tgi_async.generation import FinishReason
from tgi_async.grammar.grammar import Grammar, encode
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import FailedEvent, Request, TokenEvent
from tgi_async.wire.messages import CachePool, Sampling, StepCost
from tgi_async.wire.step_costs import StepCosts
from workers.constraints.constraints import Constraints
from workers.constraints.vocabulary import Vocabulary
from workers.graphs.decode import GraphPlan, SampledRows
from workers.launched_step import LaunchedStep
from workers.models.loading import Loaded
from workers.runner import Runner
from workers.sampling import Sampler
from workers.speculation.source import DraftSource
from workers.speculation.speculation import Speculation
from workers.table import RowTable

CPU = torch.device("cpu")
BLOCK_SIZE, N_BLOCKS, ROWS, LONGEST = 4, 80, 6, 120
FREE = StepCosts([StepCost(1, 1.0), StepCost(1000, 1.001)])
"""Further positions cost nothing, so that all drafts are verified."""


class Drive:
    """Steps as the router plans them and the worker runs them, in one thread."""

    def __init__(
        self,
        model: Loaded,
        vocabulary: Vocabulary,
        *,
        overlap: bool = False,
        rows: int = ROWS,
        n_blocks: int = N_BLOCKS,
        graphs: bool = False,
        budget: int = 16,
        drafts: DraftSource | None = None,
        max_drafts: int = 3,
        costs: StepCosts = FREE,
    ) -> None:
        """With `graphs`, decode steps of up to 4 lines are run as on a GPU, by doubles."""
        cache = model.spec.cache_group.pool(n_blocks, BLOCK_SIZE)
        self.let_go = threading.Event()
        self.let_go.set()
        self.vocabulary = vocabulary
        constraints = Constraints(self._vocabulary, model.spec.vocab_size)
        max_drafts = 0 if drafts is None else max_drafts
        table = RowTable(ROWS, LONGEST, BLOCK_SIZE, CPU, max_drafts)
        sampler = Sampler(ROWS, model.spec.vocab_size, CPU)
        self.graphs: Counted | None = None
        if graphs:
            sampling = sampler.device_sampling = HostSampling()
            plan, rows_of_all = GraphPlan(Replaying(), [1, 2, 4]), SampledRows(table, sampling)
            self.graphs = Counted(model, model.attention, cache, plan, LONGEST, rows_of_all)
            assert self.graphs.capture() == []
        speculation = None if drafts is None else Speculation(drafts, costs)
        self.runner = Runner(model, table, cache, sampler, constraints, self.graphs, speculation)
        self.core = Core(
            Budget([CachePool(n_blocks)], BLOCK_SIZE, rows, budget, LONGEST, max_drafts=max_drafts)
        )
        self.overlap = overlap
        self.n_not_ready = 0
        self.n_drafts = 0
        self.n_accepted = 0
        self.said: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float | None]] = {}
        self.reasons: dict[int, FinishReason | None] = {}
        self.errors: dict[int, str] = {}

    def _vocabulary(self) -> Vocabulary:
        assert self.let_go.wait(30)
        return self.vocabulary

    def submit(
        self,
        prompt: list[int],
        most: int,
        grammar: Grammar | None,
        sampling: Sampling,
        stop_ids: Collection[int] = (END,),
    ) -> int:
        number = len(self.said)
        self.said[number] = []
        request = Request(
            number,
            prompt,
            most,
            sampling=sampling,
            stop_ids=frozenset(stop_ids),
            grammar="" if grammar is None else encode(grammar),
        )
        self.core.submit(request)
        return number

    def run(self, n_steps: int | None = None) -> None:
        """Until nothing is left to do, as `Worker._serve` does it, or for so many steps."""
        launched: LaunchedStep | None = None
        while n_steps is None or n_steps > 0:
            plan = self.core.plan()
            if plan is None:
                if launched is None:
                    return
                self._complete(launched)
                launched = None
                continue
            n_steps = None if n_steps is None else n_steps - 1
            if launched is not None and self.runner.drafts:
                self._complete(launched)
                launched = None
            previous, launched = launched, self.runner.forward(plan.step)
            if previous is not None and self.runner.constrained:
                self._complete(previous)
                previous = None
            self.runner.sample(launched)
            if previous is not None:
                self._complete(previous)
            if not self.overlap:
                self._complete(launched)
                launched = None
        if launched is not None:
            self._complete(launched)

    def _complete(self, launched: LaunchedStep) -> None:
        done = self.runner.collect(launched)
        self.n_not_ready += len(done.masks_not_ready)
        self.n_drafts += sum(one.n_drafts for one in done.sampled)
        self.n_accepted += sum(one.n_computed for one in done.sampled)
        for event in self.core.complete(done):
            if isinstance(event, TokenEvent):
                self.said[event.request.id].append(event.token)
                reported = self.logprobs.setdefault(event.request.id, [])
                reported.append(event.logprob)
                self.reasons[event.request.id] = event.finish_reason
            elif isinstance(event, FailedEvent):
                self.errors[event.request.id] = event.message

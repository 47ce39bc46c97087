"""What is built around a loaded model, so that it runs steps: cache, table, sampler, graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tgi_async.wire.messages import Admit, Run, Sampling, Step, StepCost
from tgi_async.wire.step_costs import StepCosts
from workers import memory
from workers.attention.cache import PagedCache
from workers.constraints.constraints import Constraints
from workers.errors import UnsupportedModel
from workers.forward import Model, Vision
from workers.graphs.decode import DecodeGraphs, GraphPlan, SampledRows
from workers.models.loading import Loaded
from workers.ranks import Ranks
from workers.runner import Runner
from workers.sampling import Sampler
from workers.speculation.source import DraftSource
from workers.speculation.speculation import Speculation
from workers.step_costs import CostPlan, StepProbe, StepSizes
from workers.table import RowTable
from workers.tensor_parallel import DriverRank, FollowerRank
from workers.vision.rows import RowImages

MOST_DRAFTS = 512
"""Most drafts of a step, as the router asks for no more."""
UNMEASURED = StepCosts([StepCost(1, 64.0), StepCost(65, 128.0)])
"""What decodes are taken to cost where it could not be measured: a position a 64th of a step."""


class Drafter(NamedTuple):
    """What drafts the tokens to come, if anything does."""

    source: DraftSource | None = None
    """On rank 0."""
    most: int = 0
    """Most drafts of a row in a step."""

    @property
    def in_a_step(self) -> int:
        """Most drafts of all rows."""
        return MOST_DRAFTS if self.most else 0


NO_DRAFTER = Drafter()


@dataclass(frozen=True, slots=True)
class Executor:
    """A loaded model and the sizes that are asked for; with `ranks`, this rank's part of it."""

    model: Loaded
    device: torch.device
    max_rows: int
    longest: int
    """Positions of a text."""
    prefill_tokens: int
    """Of a step."""
    block_size: int
    constraints: Constraints | None = None
    ranks: Ranks | None = None
    driver: DriverRank | None = None
    """On rank 0 of several: the model as it runs on all of them."""
    drafter: Drafter = NO_DRAFTER
    largest_image: Mapping[str, torch.Tensor] | None = None
    """Its arrays, where images are to be encoded while the model warms up."""

    @property
    def max_lines(self) -> int:
        """Most rows and drafts of a step that a GPU computes by a graph."""
        return self.max_rows * (2 if self.drafter.most else 1)

    @property
    def bytes_per_block(self) -> int:
        return self.model.spec.cache_group.bytes_per_block(self.block_size)

    def blocks_that_fit(self, kv_cache_memory: int = 0, fraction: float = 1.0) -> int:
        """How many, once the model has run at its worst shape. `kv_cache_memory` is what all ranks
        may take together, in bytes; 0: what there is, of this `fraction` of a GPU."""
        world_size = self.ranks.world_size if self.ranks is not None else 1
        here = self.ranks.n_here if self.ranks is not None and self.device.type == "cpu" else 1
        room = kv_cache_memory // world_size or memory.for_cache(self.device, fraction) // here
        return room // self.bytes_per_block

    def runner(self, n_blocks: int) -> Runner:
        """What runs steps on this rank alone, without graphs."""
        return Runner(self.model, self._table(), self._cache(n_blocks), self._sampler())

    def warm_up(self) -> None:
        """Run the worst admitted shape, a full prefill budget beside a full batch of decodes, and
        encode the largest image, which also shows how much memory that takes. Raises
        UnsupportedModel."""
        size = self.block_size
        if self.device.type == "cuda":
            # What loading took for a while is free again.
            torch.cuda.reset_peak_memory_stats(self.device)
        n_prefill_blocks = -(-self.prefill_tokens // size)
        n_decode = self.max_rows - 1
        runner = self.runner(n_prefill_blocks + max(1, n_decode))
        greedy = Sampling()
        prompt = [0] * self.prefill_tokens
        blocks = list(range(n_decode, n_decode + n_prefill_blocks))
        short = [Admit(row, [0], 1, 0, [row], greedy) for row in range(n_decode)]
        if short:
            runner.launch(Step(1, [], short, [], [Run(row, 1) for row in range(n_decode)]))
        wide = Admit(n_decode, prompt, self.prefill_tokens, 0, blocks, greedy)
        decodes = [Run(row, 1) for row in range(n_decode)] if size > 1 else []
        together = [*decodes, Run(n_decode, self.prefill_tokens)]
        done = runner.collect(runner.launch(Step(2, [], [wide], [], together)))
        if done.errors:
            raise UnsupportedModel(f"the model does not run: {done.errors[0].message}")
        if self.model.vision is not None and self.largest_image is not None:
            self._encode(self.model.vision, self.largest_image)

    @staticmethod
    def _encode(vision: Vision, arrays: Mapping[str, torch.Tensor]) -> None:
        try:
            vision.encode(arrays)
        except ValueError as error:
            raise UnsupportedModel(f"the model does not encode images: {error}") from error
        except torch.OutOfMemoryError as error:
            shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in arrays.items())
            raise UnsupportedModel(
                f"the largest image of the model ({shapes}) does not fit in the GPU's memory "
                "beside its weights; quantize them (--quantize), or use a smaller model"
            ) from error

    def serving(
        self, n_blocks: int, graphs: GraphPlan | None = None, costs: CostPlan | None = None
    ) -> Runner | FollowerRank:
        """What serves: rank 0's runner, or what follows it on the others. With `graphs`, decode
        steps are captured first; with `costs`, rank 0 then measures steps, in which the others
        follow it."""
        cache = self._cache(n_blocks)
        leads = self.ranks is None or self.ranks.rank == 0
        table = self._table() if leads else None
        sampler = self._sampler() if leads else None
        decode_graphs: DecodeGraphs | None = None
        if graphs is not None:
            rows = None
            if table is not None and sampler is not None:
                assert sampler.device_sampling is not None
                rows = SampledRows(table, sampler.device_sampling)
            decode_graphs = DecodeGraphs(
                self.model,
                self.model.attention,
                cache,
                graphs,
                self.longest,
                rows,
                self.ranks,
                None if self.driver is None else self.driver.replay,
            )
            graphs.notes += decode_graphs.capture()
        if table is None or sampler is None:
            assert self.ranks is not None
            return FollowerRank(self.model, self.ranks, cache, self.device, decode_graphs)
        model: Model = self.driver or self.model
        if costs is not None and costs.asked:
            measured = Runner(model, table, cache, sampler, None, decode_graphs)
            n_rows = self.max_rows
            if decode_graphs is None:
                # It can have more rows than that, as each draft is like a row.
                n_rows = costs.n_rows
                measured = Runner(model, self._table(n_rows), cache, self._sampler(n_rows))
            costs.measure(
                StepProbe(
                    lambda step: measured.collect(measured.launch(step)),
                    StepSizes(n_rows, n_blocks, self.block_size, self.longest),
                    self.model.spec.vocab_size,
                    self._clock(),
                    compiles=self.device.type != "cpu",
                )
            )
        speculation = None
        if self.drafter.source is not None:
            found = costs.decode if costs is not None else []
            costs_of_decodes = StepCosts(found) if found else UNMEASURED
            speculation = Speculation(self.drafter.source, costs_of_decodes)
        images = None
        if self.model.vision is not None:
            images = RowImages(self.model.vision, self.max_rows, self.device)
        return Runner(
            model, table, cache, sampler, self.constraints, decode_graphs, speculation, images
        )

    def _clock(self) -> Callable[[], float]:
        if self.device.type == "cpu" and self.ranks is None:
            # This thread does its part of all that the threads do, and whoever else wants the
            # processors for a moment does not show in its time.
            return time.thread_time
        return time.perf_counter

    def _cache(self, n_blocks: int) -> PagedCache:
        return self.model.spec.cache_group.pool(n_blocks, self.block_size, self.device)

    def _table(self, max_rows: int = 0) -> RowTable:
        return RowTable(
            max_rows or self.max_rows,
            self.longest,
            self.block_size,
            self.device,
            self.drafter.most,
        )

    def _sampler(self, max_rows: int = 0) -> Sampler:
        return Sampler(
            max_rows or self.max_rows,
            self.model.spec.vocab_size,
            self.device,
            most_lines=max(max_rows, self.max_lines, self.max_rows + self.drafter.in_a_step),
        )

"""Decode steps as CUDA graphs: a forward pass and its sampling, captured once for some batch sizes.

The inputs of a step are read from fixed addresses on the device, which one copy fills before each
(`InputBuffers`): where the tokens are, positions, sampling parameters, attention metadata
(`AttentionCapture`). A step with fewer rows than the graph is padded with rows of length 0, whose
keys and values go nowhere and whose tokens go to the table's padding row. A draft is a row.

A graph does not depend on the lengths of the texts: attention loops over as many parts of the
contexts as a number on the device says, on a fixed grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workers.attention.backend import AttentionBackend, AttentionCapture, DecodeRows, PaddedArray
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.decodes import Decodes
from workers.forward import ForwardBatch, Model
from workers.graphs.capture import GraphCapture, Outputs
from workers.graphs.input_buffers import InputBuffers, Int32Array, Layout
from workers.ranks import RankFailed, Ranks
from workers.sampling.device import DeviceSampling
from workers.sampling.output import Picked
from workers.table import RowTable

SECONDS = 60.0
"""Time after which no further graph is captured; steps are then padded to the next larger one."""
STEP = 32
"""Distance of the default batch sizes from here on; powers of two before. Matrix products take as
long for 33 rows as for 64, but attention and sampling do not."""


@dataclass(slots=True)
class GraphPlan:
    """The batch sizes whose decode steps are to be captured."""

    capture: GraphCapture
    sizes: list[int]
    notes: list[str] = field(default_factory=list)
    """Notes for the user on what was given up, once they have been captured."""


class SampledRows(NamedTuple):
    """What only rank 0 has: the rows, and their sampler."""

    table: RowTable
    sampling: DeviceSampling


class _Graph:
    """The graph of one batch size."""

    def __init__(self, n_rows: int, attention: AttentionCapture) -> None:
        self.n_rows = n_rows
        self.attention = attention
        sizes = dict.fromkeys(("inputs", "stores", "positions"), n_rows)
        sizes["sampling"] = n_rows * DeviceSampling.WIDTH
        self.layout = Layout({**sizes, **attention.sizes})
        self.replay: Callable[[], None] | None = None
        self.outputs: Outputs = ()


def default_sizes(max_rows: int) -> list[int]:
    """Return the default batch sizes."""
    powers = [2**i for i in range(STEP.bit_length())]
    sizes = [n for n in (*powers, *range(STEP, max_rows, STEP)) if n < max_rows]
    return sorted({*sizes, max_rows})


class DecodeGraphs:
    """The graphs of one rank. Rank 0, which has the table, decides; the others follow it."""

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend[Any],
        cache: PagedCache,
        plan: GraphPlan,
        most_positions: int,
        rows: SampledRows | None = None,
        ranks: Ranks | None = None,
        broadcast: Callable[[int, Int32Array], None] | None = None,
    ) -> None:
        """Hold graphs. `attention` is the model's; `most_positions` is the longest text of a row.
        `rows` are rank 0's. With `ranks`, the model is this one's part, and rank 0 has `broadcast`,
        by which the others `follow`."""
        self._model = model
        self._attention = attention
        self._cache = cache
        self._capture = plan.capture
        self._table = rows.table if rows else None
        self._sampling = rows.sampling if rows else None
        self._ranks = ranks
        self._broadcast = broadcast
        device = cache.keys[0].device
        self._graphs: list[_Graph] = []
        for n_rows in sorted(set(plan.sizes), reverse=True):
            capture = attention.capture(cache, n_rows, most_positions)
            if capture is not None:
                self._graphs.append(_Graph(n_rows, capture))
        room = max((x.layout.size + x.attention.most_rest for x in self._graphs), default=0)
        self._buffers = InputBuffers(room, device)
        self._logits: torch.Tensor | None = None
        self._every = torch.arange(max(plan.sizes), device=device)

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that have a graph, ascending."""
        return [one.n_rows for one in reversed(self._graphs)]

    @torch.inference_mode()
    def capture(self, seconds: float = SECONDS) -> list[str]:
        """Capture the graphs, the largest first, until `seconds` have passed.

        Return what was given up, for the log. All ranks capture together.
        """
        if not self._graphs:
            return [
                f"decode steps run without CUDA graphs, slower: {self._attention.name} attention "
                "cannot be captured in one"
            ]
        began = time.perf_counter()
        for at, graph in enumerate(self._graphs):
            in_time = not at or time.perf_counter() - began < seconds
            if not self._all(in_time):
                left = [one.n_rows for one in self._graphs[at:]]
                self._graphs = self._graphs[:at]
                return [
                    f"decode steps of {left[-1]} to {left[0]} rows are filled up to "
                    f"{self.sizes[0]}: capturing CUDA graphs took longer than {seconds:.0f} s"
                ]
            error = self._capture_graph(graph)
            if not self._all(not error):
                self._graphs = self._graphs[:at]
                reason = error or "another rank could not capture them"
                if not at:
                    return [f"decode steps run without CUDA graphs, slower: {reason}"]
                return [
                    f"decode steps of up to {graph.n_rows} rows are filled up to {self.sizes[0]}: "
                    f"{reason}"
                ]
        return []

    def run(
        self, decodes: Decodes, stored: NDArray[np.bool_], sampling: Int32Array
    ) -> tuple[torch.Tensor, Picked] | None:
        """Run a step of n lines; return its logits [n, V] and tokens, which the next one
        overwrites. `stored` ([n]) says which tokens become their rows' last, `sampling` (int32 [n,
        DeviceSampling.WIDTH]) how they are sampled. Returns None, with nothing done, where no graph
        has room for so many lines or such long texts.

        Raises ValueError for numbers outside the cache.
        """
        assert self._table is not None
        n = len(decodes.rows)
        graph = next((one for one in reversed(self._graphs) if one.n_rows >= n), None)
        if graph is None:
            return None
        lengths = (decodes.positions + 1).astype(np.int32)
        tables = self._table.block_tables
        filled = graph.attention.fill(DecodeRows(decodes.slots, lengths, tables, decodes.rows))
        if filled is None:
            return None
        stores = np.where(stored, decodes.rows, self._table.padding_row)
        size = self._write(
            graph,
            {
                "inputs": (decodes.inputs, self._table.padding_row),
                "stores": (stores, self._table.padding_row),
                "positions": (decodes.positions, 0),
                "sampling": (sampling.ravel(), 0),
            },
            filled,
        )
        logits, *picked = self._run(graph, size)
        return logits[:n], Picked(*(x[:n] for x in picked))

    def follow(self, n_rows: int, numbers: Int32Array) -> None:
        """Run the graph that rank 0 runs."""
        graph = next(one for one in self._graphs if one.n_rows == n_rows)
        self._buffers.next()[: len(numbers)] = numbers
        self._run(graph, len(numbers))

    def close(self) -> None:
        """Free the graphs, which NCCL waits for when its group is destroyed."""
        self._graphs = []

    def _run(self, graph: _Graph, size: int) -> Outputs:
        if self._broadcast is not None:
            self._broadcast(graph.n_rows, self._buffers.next()[:size])
        self._buffers.send(size)
        assert graph.replay is not None
        graph.replay()
        return graph.outputs

    def _write(
        self,
        graph: _Graph,
        parts: dict[str, PaddedArray],
        attention: tuple[Mapping[str, PaddedArray], Int32Array],
    ) -> int:
        """Write the numbers of the next step, on the host; return how many there are."""
        of_attention, rest = attention
        return graph.layout.write(self._buffers.next(), {**parts, **of_attention}, rest)

    def _capture_graph(self, graph: _Graph) -> str:
        """Capture the graph of one batch size. Return why it cannot be captured, or nothing."""
        # A step without rows leaves the cache as it is.
        padding_row = 0 if self._table is None else self._table.padding_row
        nothing = np.empty(0, np.int32)
        none = np.empty(0, np.int64)
        filled = graph.attention.fill(DecodeRows(none, nothing, nothing.reshape(0, 0), none))
        assert filled is not None
        size = self._write(
            graph,
            {
                "inputs": (nothing, padding_row),
                "stores": (nothing, padding_row),
                "positions": (nothing, 0),
                "sampling": (nothing, 0),
            },
            filled,
        )
        self._buffers.send(size)
        try:
            self._capture.prepare(lambda: self._step(graph))
        except torch.AcceleratorError:
            raise  # the device itself is lost
        except RuntimeError as error:
            if self._ranks is not None:
                # The others wait for this rank in the middle of it.
                raise RankFailed(f"a step of {graph.n_rows} rows failed: {error}") from error
            return _first_line(error)
        try:
            graph.replay, graph.outputs = self._capture.capture(lambda: self._step(graph))
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            return _first_line(error)
        return ""

    def _step(self, graph: _Graph) -> Outputs:
        """Run the step over the numbers that are on the device."""
        at = graph.layout.views(self._buffers.on_device)
        if self._table is not None:
            ids = self._table.last_tokens.index_select(0, at["inputs"])
        else:
            ids = self._every.new_empty(graph.n_rows)
        if self._ranks is not None:
            ids = self._ranks.broadcast(ids)
        captured = {self._attention: graph.attention.metadata(at)}
        context = AttentionContext.captured(self._cache, graph.n_rows, captured)
        every = self._every[: graph.n_rows]
        batch = ForwardBatch(ids, at["positions"].long(), every, context)
        logits = self._model.forward(batch).logits
        if self._sampling is None or self._table is None:
            return ()
        asked = at["sampling"].view(graph.n_rows, DeviceSampling.WIDTH)
        picked = self._sampling.sample(logits, asked)
        self._table.last_tokens.index_copy_(0, at["stores"].long(), picked.tokens)
        return self._kept(logits), *picked

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Return one shared copy of a tensor, as what each graph keeps for itself adds up."""
        if self._logits is None:
            # The largest graph is prepared first.
            self._logits = torch.empty_like(logits)
        return self._logits[: len(logits)].copy_(logits)

    def _all(self, mine: bool) -> bool:
        """Return whether it is true on all ranks."""
        return mine if self._ranks is None else bool(self._ranks.all_reduce_min(int(mine)))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

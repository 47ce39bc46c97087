"""What grammars mean for a step: who sits out, who may say what, who said it."""

from __future__ import annotations

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from tgi_async.wire.messages import RowError, Run, Sampled
from workers.constraints.constraints import Constraints
from workers.launched import LaunchedStep, SamplingBatch
from workers.table import RowTable

PATIENCE_SECONDS = 0.005
"""How long a step waits for grammars where it has nothing else to do."""


class ConstrainedRows:
    """The rows of a table that follow grammars, as a runner's steps meet them."""

    def __init__(self, table: RowTable, constraints: Constraints) -> None:
        self._table = table
        self._constraints = constraints

    def without_waiting(self, runs: list[Run], launched: LaunchedStep) -> list[Run]:
        """Leave out rows that would sample and have been late; wait a little if all are."""
        waiting = [
            run for run in runs if self._samples(run) and self._constraints.sits_out(run.row)
        ]
        if waiting and len(waiting) == len(runs):
            self._constraints.wait([run.row for run in waiting], PATIENCE_SECONDS)
            waiting = [run for run in waiting if self._constraints.sits_out(run.row)]
        # A longer chunk is computed nevertheless: only its last token will have to wait.
        launched.late += [run.row for run in waiting if run.n == 1]
        late = set(launched.late)
        return [run for run in runs if run.row not in late]

    def _samples(self, run: Run) -> bool:
        row = self._table[run.row]
        return row.n_computed + run.n >= len(row.tokens)

    def masked(self, part: SamplingBatch, launched: LaunchedStep) -> SamplingBatch:
        """The rows that can be sampled, with what each of them may say."""
        if self._table.last_tokens.is_cuda:
            # The device is busy with the forward pass meanwhile.
            quick = [row for row in part.rows if not self._constraints.slow(row)]
            self._constraints.wait(quick, PATIENCE_SECONDS)
        places: list[int] = []
        masks: list[NDArray[np.int32] | None] = []
        for place, row in enumerate(part.rows):
            if self._constraints.late(row):
                launched.late.append(row)
                self._table[row].n_computed -= 1
                continue
            if error := self._constraints.error(row):
                launched.errors.append(RowError(row, error))
                self._table[row].failed = True
                continue
            following = self._constraints.next(row)
            if following is not None and len(following.forced) > 1:
                launched.forced[row] = following.forced
            masks.append(None if following is None else following.mask)
            places.append(place)
        left = part if len(places) == len(part.rows) else part.pick(places)
        return left._replace(masks=masks)

    def follow(self, sampled: list[Sampled], launched: LaunchedStep) -> list[Sampled]:
        """Tell the grammars what their rows said, and the router what follows it."""
        taken: dict[int, list[int]] = {}
        told: list[Sampled] = []
        for one in sampled:
            if one.row in self._constraints and self._table.get(one.row) is launched.rows[one.row]:
                forced = launched.forced.get(one.row, [])
                taken[one.row] = forced or one.tokens
                if forced:
                    # They could not have been others.
                    logprobs = one.logprobs and one.logprobs + [0.0] * (len(forced) - 1)
                    one = structs.replace(one, tokens=forced, logprobs=logprobs)
            told.append(one)
        self._constraints.advance(taken)
        return told

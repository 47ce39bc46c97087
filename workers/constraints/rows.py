"""Apply grammar masks to a step and advance the matchers."""

from __future__ import annotations

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from tgi_async.wire.messages import RowError, Run, Sampled
from workers.constraints.constraints import Constraints
from workers.launched_step import LaunchedStep, SamplingBatch
from workers.speculation.speculation import Asked
from workers.table import RowTable

PATIENCE_SECONDS = 0.005
"""How long a step waits for masks where it has nothing else to do."""
DRAFTS_PATIENCE_SECONDS = 0.001
"""How long a step waits for masks that say which drafts are allowed."""


class ConstrainedRows:
    """The rows of a table that have grammars, for the steps of a runner."""

    def __init__(self, table: RowTable, constraints: Constraints) -> None:
        self._table = table
        self._constraints = constraints

    def without_waiting(self, runs: list[Run], launched: LaunchedStep) -> list[Run]:
        """Leave out rows that would sample and whose masks are still not ready.

        Waits a little if these are all rows.
        """
        waiting = [
            run
            for run in runs
            if self._table[run.row].samples(run.n) and self._constraints.still_not_ready(run.row)
        ]
        if waiting and len(waiting) == len(runs):
            self._constraints.wait([run.row for run in waiting], PATIENCE_SECONDS)
            waiting = [run for run in waiting if self._constraints.still_not_ready(run.row)]
        # A longer chunk is computed all the same: only its last token has to wait.
        launched.masks_not_ready += [
            run.row for run in waiting if self._table[run.row].n_known(run.n) == 1
        ]
        skipped = set(launched.masks_not_ready)
        return [run for run in runs if run.row not in skipped]

    def asked(self, runs: list[Run]) -> list[Asked]:
        """Return what these rows may draft. One whose mask is not ready soon drafts nothing."""
        self._constraints.wait([run.row for run in runs], DRAFTS_PATIENCE_SECONDS)
        asked: list[Asked] = []
        for run in runs:
            state = self._constraints.next(run.row)
            if state is None:
                asked.append(Asked(run.row, run.n - 1))
            elif self._constraints.ready(run.row):
                forced = state.jump_forward_tokens
                asked.append(Asked(run.row, run.n - 1, forced, state.allows))
        return asked

    def go_on(self, taken: dict[int, list[int]]) -> None:
        """Advance the matchers of rows that sample again in this step, and wait for their masks."""
        self._constraints.advance(taken)
        self._constraints.wait(taken, PATIENCE_SECONDS)

    def masked(
        self, part: SamplingBatch, launched: LaunchedStep, *, first: bool = True
    ) -> SamplingBatch:
        """Return the rows that can be sampled, with their masks.

        `first`: they are at their first place in this step, and without a mask sample nothing.
        """
        if self._table.last_tokens.is_cuda:
            # The device is busy with the forward pass meanwhile.
            quick = [row for row in part.rows if not self._constraints.slow(row)]
            self._constraints.wait(quick, PATIENCE_SECONDS)
        places: list[int] = []
        masks: list[NDArray[np.int32] | None] = []
        for place, row in enumerate(part.rows):
            if self._constraints.mask_not_ready(row):
                launched.masks_not_ready.append(row)
                self._table[row].n_computed -= first
                continue
            if error := self._constraints.error(row):
                launched.errors.append(RowError(row, error))
                self._table[row].failed = True
                continue
            following = self._constraints.next(row)
            if following is not None and len(following.jump_forward_tokens) > 1:
                launched.jump_forward_tokens[row] = following.jump_forward_tokens
            masks.append(None if following is None else following.mask)
            places.append(place)
        left = part if len(places) == len(part.rows) else part.pick(places)
        return left._replace(masks=masks)

    def follow(self, sampled: list[Sampled], launched: LaunchedStep) -> list[Sampled]:
        """Advance the matchers by the sampled tokens; return these with the jump-forward tokens."""
        taken: dict[int, list[int]] = {}
        results: list[Sampled] = []
        for one in sampled:
            if one.row in self._constraints and self._table.get(one.row) is launched.rows[one.row]:
                forced = launched.jump_forward_tokens.get(one.row, [])
                taken[one.row] = forced or one.tokens
                if forced:
                    # Each was the only token allowed, with probability 1.
                    logprobs = one.logprobs and one.logprobs + [0.0] * (len(forced) - 1)
                    one = structs.replace(one, tokens=forced, logprobs=logprobs)
            results.append(one)
        self._constraints.advance(taken)
        return results

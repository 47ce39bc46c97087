"""Verify drafts: sample the places behind a row's last token, as long as its drafts are accepted.

Each place is sampled only when all drafts before it are accepted, so that what a token depends on
(penalties, bans, grammars) is exactly what it is without drafts.
"""

from __future__ import annotations

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from tgi_async.wire.messages import RowError, Sampled
from workers.constraints.constraints import Constraints
from workers.launched_step import LaunchedStep, SamplingBatch
from workers.sampling.output import Picked
from workers.table import RowTable
from workers.transfer import send


class _Row:
    """A row with drafts, and what it has sampled."""

    __slots__ = ("done", "drafts", "line", "place", "results", "start", "tokens")

    def __init__(self, drafts: list[int], start: int) -> None:
        self.drafts = drafts
        self.start = start
        """Positions that it had computed with its last token, without drafts."""
        self.place = 0
        """Where it samples next; all drafts before are accepted."""
        self.line = 0
        """Of the logits: where its last token was sampled."""
        self.done = False
        self.tokens: list[int] = []
        """What it sampled last."""
        self.results: list[Sampled] = []


class Verification:
    """Goes through the places of a batch, whose rows are all sampled at the first."""

    def __init__(self, part: SamplingBatch, launched: LaunchedStep, table: RowTable) -> None:
        self._part = part
        self._launched = launched
        self._table = table
        self.place = -1
        """The place that is sampled."""
        self._rows = {
            row: _Row(list(drafts), table[row].n_computed)
            for row, drafts in zip(part.rows, part.drafts, strict=False)
        }
        counts = [
            sum(len(one) > place for one in part.drafts) for place in range(len(part.drafts[0]))
        ]
        self._lines = np.cumsum([0, len(part.rows), *counts])
        """First line of the logits at each place."""

    def next(self) -> SamplingBatch | None:
        """Return the rows of the next place at which any is sampled; None where there is none."""
        if self.place < 0:
            self.place = 0
            n = len(self._part.rows)
            return self._at(np.arange(n)) if n < len(self._part.logits) else self._part
        places = [one.place for one in self._rows.values() if not one.done]
        if not places:
            return None
        self.place = min(places)
        here = [
            index
            for index, one in enumerate(self._rows.values())
            if not one.done and one.place == self.place
        ]
        return self._at(self._lines[self.place] + np.asarray(here), here)

    def lines(self) -> tuple[list[int], list[int]]:
        """Return the row of each line of the logits, and the number of tokens before it."""
        rows = list(self._part.rows)
        lengths = [self._table[row].length for row in rows]
        for place in range(1, len(self._lines) - 1):
            n = int(self._lines[place + 1] - self._lines[place])
            rows += rows[:n]
            lengths += [length + place for length in lengths[:n]]
        return rows, lengths

    def take_all(self, sampled: list[Sampled], broken: list[RowError]) -> None:
        """Take what was sampled at all lines, which are the rows of these results."""
        found = {one.row: one for one in sampled}
        errors = {one.row: one.message for one in broken}
        tokens: dict[int, int] = {}
        for index, row in enumerate(self._part.rows):
            if index in errors:
                self._launched.errors.append(RowError(row, errors[index]))
                continue
            state = self._rows.get(row)
            if state is None:
                self._launched.sampled.append(structs.replace(found[index], row=row))
                self._table[row].length += 1
                tokens[row] = found[index].tokens[0]
                continue
            for place in range(len(state.drafts) + 1):
                self.place = place
                one = found.get(int(self._lines[place]) + index)
                if one is None:
                    break  # found again in the next step, which begins here
                self._table[row].length += 1
                if not self._accept(row, index, state, structs.replace(one, row=row), None):
                    break
        self._store(tokens)

    def take(self, at: LaunchedStep, constraints: Constraints | None) -> dict[int, list[int]]:
        """Take what was sampled at this place. Return the tokens of rows that go on."""
        launched, first = self._launched, self.place == 0
        sampled: list[Sampled] = []
        for rows, output in at.outputs:
            found, broken = output.to_wire(rows)
            sampled += found
            at.errors += broken
        if first:
            launched.errors += at.errors
            launched.masks_not_ready += at.masks_not_ready
        else:
            for error in at.errors:
                # It is found again in the next step, which begins here.
                self._table[error.row].failed = False
        going_on: dict[int, list[int]] = {}
        taken: set[int] = set()
        for one in sampled:
            state = self._rows.get(one.row)
            forced = at.jump_forward_tokens.get(one.row, [])
            if state is None:
                if forced:
                    launched.jump_forward_tokens[one.row] = forced
                launched.sampled.append(one)
                continue
            taken.add(one.row)
            if forced:
                # Each was the only token allowed, with probability 1.
                logprobs = one.logprobs and one.logprobs + [0.0] * (len(forced) - 1)
                one = structs.replace(one, tokens=forced, logprobs=logprobs)
            index = self._part.rows.index(one.row)
            if self._accept(one.row, index, state, one, constraints):
                going_on[one.row] = one.tokens
        for row, state in self._rows.items():
            if state.place == self.place and row not in taken and not state.done:
                state.done = True
        return going_on

    def finish(self) -> dict[int, list[int]]:
        """Put the results into the launched step and the table. Return the tokens by which grammars
        have not been advanced yet."""
        left: dict[int, list[int]] = {}
        ends: dict[int, int] = {}
        for row, state in self._rows.items():
            if not state.results:
                continue
            tokens = [token for one in state.results for token in one.tokens]
            if state.tokens:
                left[row] = state.tokens
                n_accepted = state.place
            else:
                # Nothing was sampled where it came to: the last draft counts as the sampled token.
                n_accepted = state.place - 1
            self._table[row].accept(state.start + n_accepted)
            ends[row] = tokens[-1]
            self._launched.verified.append(
                Sampled(
                    row,
                    tokens,
                    [one for each in state.results for one in each.logprobs],
                    [one for each in state.results for one in each.top],
                    n_accepted,
                    len(state.drafts),
                )
            )
        self._store(ends)
        return left

    def _store(self, tokens: dict[int, int]) -> None:
        """Store the last tokens of rows."""
        if tokens:
            table = self._table
            rows, last = (np.asarray(list(x), np.int64) for x in (tokens, tokens.values()))
            device = table.last_tokens.device
            table.last_tokens[send(rows, device)] = send(last, device)

    def last_lines(self) -> NDArray[np.int64]:
        """Return of each row the line of the logits of its last sampled token."""
        lines = np.arange(len(self._part.rows))
        lines[: len(self._rows)] = [one.line for one in self._rows.values()]
        return lines

    def _accept(
        self, row: int, index: int, state: _Row, one: Sampled, constraints: Constraints | None
    ) -> bool:
        """Add what a row sampled. Return whether it goes on, as all of it are its drafts."""
        state.results.append(one)
        n = 0
        for token, draft in zip(one.tokens, state.drafts[state.place :], strict=False):
            if token != draft:
                break
            n += 1
        if constraints is not None and constraints.ends(row, one.tokens[-1]):
            n = min(n, len(one.tokens) - 1)  # its grammar goes no further
        # Of several tokens all but the first were known before, but each has a place.
        state.line = int(self._lines[state.place + min(n, len(one.tokens) - 1)]) + index
        state.place += n
        state.done = n < len(one.tokens)
        state.tokens = one.tokens if state.done else []
        return not state.done

    def _at(self, lines: NDArray[np.int64], here: list[int] | None = None) -> SamplingBatch:
        """Return these lines as a batch, of these of the rows, or of all."""
        part = self._part
        n = len(lines)
        rows = part.rows if here is None else [part.rows[index] for index in here]
        if int(lines[-1]) - int(lines[0]) + 1 == n:
            some: slice | torch.Tensor = slice(int(lines[0]), int(lines[-1]) + 1)
        else:
            some = send(lines, part.logits.device)
        return SamplingBatch(
            rows,
            part.logits[some],
            [None] * n,
            None if part.picked is None else Picked(*(x[some] for x in part.picked)),
        )

"""Speculation: drafts for the rows of a step, as many as are worth their cost.

A draft is verified by the rule that samples any token: random numbers are a function of (seed,
choice, position), so it stands exactly while it is the token that its row samples at its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from tgi_async.wire.step_costs import StepCosts
from workers.speculation.acceptance import Acceptance
from workers.speculation.choice import least_chance, worth_verifying
from workers.speculation.source import DraftRows, DraftSource, Proposal

LEARNS_EVERY = 16
"""Steps of which one searches for any match, to learn which are accepted: in a large batch the
search itself is dear, and most of what it finds does not pay."""


class Asked(NamedTuple):
    """A row that may verify drafts."""

    row: int
    limit: int
    """Most drafts, at least one."""
    forced: Sequence[int] = ()
    """Its next tokens as its grammar forces them, which need no drafting."""
    cut: Callable[[list[int]], int] | None = None
    """Returns how many of some drafts its grammar allows."""


class Speculation:
    """A source of drafts, and what decides how many of them are verified."""

    def __init__(self, source: DraftSource, costs: StepCosts) -> None:
        """Draft from `source`. `costs` are those of decode steps."""
        self.wants_hidden = source.wants_hidden
        self._source = source
        self._costs = costs
        self._acceptance = Acceptance()
        self._proposals: dict[int, Proposal] = {}
        """What was proposed for the next tokens of rows."""
        self._hidden: dict[int, torch.Tensor] = {}
        self._n_steps = 0

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        """Add a row, see `DraftSource`."""
        self.release(row)
        self._source.admit(row, tokens, n_prompt, tenant)
        self._acceptance.admit(row)

    def release(self, row: int) -> None:
        """Remove a row, which may not be there."""
        self._proposals.pop(row, None)
        self._hidden.pop(row, None)
        self._source.release(row)
        self._acceptance.release(row)

    def propose(
        self, asked: Sequence[Asked], n_positions: int, n_sampled: int
    ) -> dict[int, list[int]]:
        """Return the drafts that rows verify in a step, which without them computes `n_positions`
        and samples `n_sampled` tokens. Rows without any are left out."""
        free = [one for one in asked if not one.forced]
        if self.wants_hidden:
            free = [one for one in free if one.row in self._hidden]
        least = least_chance(self._costs, n_positions, n_sampled, sum(one.limit for one in asked))
        least_match = self._least_match(least)
        proposed = {one.row: Proposal(list(one.forced[: one.limit])) for one in asked if one.forced}
        chances = {row: [1.0] * len(forced.tokens) for row, forced in proposed.items()}
        drafts = [] if least_match is None else self._drafts(free, least_match)
        for one, proposal in zip(free, drafts, strict=False):
            if one.cut is not None and proposal.tokens:
                proposal = proposal._replace(tokens=proposal.tokens[: one.cut(proposal.tokens)])
            if proposal.tokens:
                proposed[one.row] = self._proposals[one.row] = proposal
                chances[one.row] = self._acceptance.chances(one.row, proposal)
        if not proposed:
            return {}
        counts = worth_verifying(
            [chances[row] for row in proposed], self._costs, n_positions, n_sampled
        )
        return {
            row: proposal.tokens[:n]
            for (row, proposal), n in zip(proposed.items(), counts, strict=True)
            if n
        }

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        """Append the tokens that a row was given."""
        proposal = self._proposals.pop(row, None)
        if proposal is not None:
            self._acceptance.learn(row, proposal, tokens)
        self._source.observe(row, tokens)

    def observe_hidden(self, rows: Sequence[int], hidden: torch.Tensor) -> None:
        """Keep [n, hidden], see `DraftRows`, of rows that sampled."""
        for line, row in enumerate(rows):
            self._hidden[row] = hidden[line]

    def _least_match(self, chance: float) -> int | None:
        """Return the shortest match that is worth a search; None where none is."""
        self._n_steps += 1
        if not self._n_steps % LEARNS_EVERY:
            return 0
        return self._acceptance.least_match(chance, 0 if self.wants_hidden else 1)

    def _drafts(self, asked: Sequence[Asked], least_match: int) -> list[Proposal]:
        if not asked:
            return []
        rows, limits = [one.row for one in asked], [one.limit for one in asked]
        hidden = torch.stack([self._hidden[row] for row in rows]) if self.wants_hidden else None
        return self._source.propose(DraftRows(rows, limits, hidden, least_match))

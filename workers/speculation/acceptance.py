"""How likely drafts are to be accepted, learnt from what rows emit.

A draft is judged by the length of the match that led to it, and by its row. Every proposal is
compared with what its row emits next, whether it was verified or not, so nothing has to be tried
out. Counts fade, so that a text that changes is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.speculation.source import Proposal

CLASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Least match of each class but the first, which is of matches of no token: those of models."""
PRIOR = (0.6, 0.2, 0.35, 0.45, 0.6, 0.7, 0.77, 0.82, 0.87, 0.9, 0.9)
"""Acceptance of each class before anything is known; of texts, as `benchmarks/drafts.py` has it."""
PRIOR_WEIGHT = 8.0
"""How many drafts the prior counts for among those of all rows."""
SHARED_WEIGHT = 16.0
"""How many drafts all rows' acceptance counts for among a row's own."""
FADE = 0.98
"""What a count is worth after one more draft of its class."""

CLASS_OF = [sum(least <= match for least in CLASSES) for match in range(CLASSES[-1] + 1)]


def class_of(match: int) -> int:
    """Return the class of a match of so many tokens."""
    return CLASS_OF[min(match, CLASSES[-1])]


class _Counts:
    """Faded counts of drafts, and of those that were right, by class."""

    __slots__ = ("right", "tried")

    def __init__(self) -> None:
        self.tried = [0.0] * len(PRIOR)
        self.right = [0.0] * len(PRIOR)

    def add(self, kind: int, right: bool) -> None:
        self.tried[kind] = self.tried[kind] * FADE + 1.0
        self.right[kind] = self.right[kind] * FADE + right


class Acceptance:
    """What was learnt of all rows, and of each."""

    def __init__(self) -> None:
        self._all = _Counts()
        self._rows: dict[int, _Counts] = {}

    def admit(self, row: int) -> None:
        """Add a row, or start it again."""
        self._rows[row] = _Counts()

    def release(self, row: int) -> None:
        """Remove a row, which may not be there."""
        self._rows.pop(row, None)

    def learn(self, row: int, proposal: Proposal, tokens: Sequence[int]) -> None:
        """Compare a row's proposal with the tokens that it emitted instead."""
        own, every = self._rows[row], self._all
        for place, (draft, token) in enumerate(zip(proposal.tokens, tokens, strict=False)):
            kind = class_of(proposal.match + place)
            own.add(kind, draft == token)
            every.add(kind, draft == token)
            if draft != token:
                return

    def least_match(self, chance: float, first: int) -> int | None:
        """Return the shortest match, of `first` tokens or more, whose first draft is accepted with
        this chance or a better one; None where there is none."""
        every = self._all
        for match in (first, *(one for one in CLASSES if one > first)):
            kind = class_of(match)
            if _rate(every, kind) >= chance:
                return match
        return None

    def chances(self, row: int, proposal: Proposal) -> list[float]:
        """Return for each draft how likely it is that it and all before it are accepted."""
        own, every = self._rows[row], self._all
        found: list[float] = []
        chance = 1.0
        for place in range(len(proposal.tokens)):
            kind = class_of(proposal.match + place)
            shared = _rate(every, kind)
            chance *= (own.right[kind] + SHARED_WEIGHT * shared) / (own.tried[kind] + SHARED_WEIGHT)
            found.append(chance)
        return found


def _rate(every: _Counts, kind: int) -> float:
    """Return the share of drafts of a class that are right."""
    return (every.right[kind] + PRIOR_WEIGHT * PRIOR[kind]) / (every.tried[kind] + PRIOR_WEIGHT)

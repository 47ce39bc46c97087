"""Drafts out of a row's own text: what followed its last tokens when they were there before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from workers.speculation.history import LONGEST, History
from workers.speculation.source import NOTHING, DraftRows, Proposal


class NgramSource:
    """Drafts what follows the longest suffix of a row's prompt and output that occurs before, the
    latest time where it does so more than once."""

    method: ClassVar[str] = "ngram"
    wants_hidden: ClassVar[bool] = False

    LEAST_MATCH: ClassVar[int] = 2
    """Tokens. What follows a single token is right one time in five, and these drafts are as many
    as may be."""

    def __init__(self) -> None:
        self._rows: dict[int, History] = {}

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        self._rows[row] = History(tokens)

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        self._rows[row].text.extend(tokens)

    def release(self, row: int) -> None:
        self._rows.pop(row, None)

    def propose(self, wanted: DraftRows) -> list[Proposal]:
        beyond = max(self.LEAST_MATCH, wanted.least_match) - 1
        return [
            self._propose(self._rows[row], limit, beyond)
            for row, limit in zip(wanted.rows, wanted.limits, strict=True)
        ]

    def _propose(self, history: History, limit: int, beyond: int) -> Proposal:
        match, place = history.find(history.text[-LONGEST:], beyond)
        return Proposal(history.after(place, limit), match) if match else NOTHING

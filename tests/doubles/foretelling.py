"""A source of drafts that knows texts beforehand, and is wrong now and then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar
from zlib import crc32

from workers.speculation.source import NOTHING, DraftRows, Proposal


class Foretelling:
    """A `DraftSource` over whole texts, prompts included.

    Of those that begin as a row's text does, it drafts the first one's continuation. One in
    `wrong_in` drafts is another token; 0: none.
    """

    method: ClassVar[str] = "foretelling"
    wants_hidden: ClassVar[bool] = False

    def __init__(self, texts: Sequence[list[int]], *, wrong_in: int = 5) -> None:
        self._texts = texts
        self._wrong_in = wrong_in
        self._rows: dict[int, list[int]] = {}
        self.n_observed = 0

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        self._rows[row] = list(tokens)

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        self._rows[row] += tokens
        self.n_observed += len(tokens)

    def release(self, row: int) -> None:
        self._rows.pop(row, None)

    def propose(self, wanted: DraftRows) -> list[Proposal]:
        return [
            self._proposal(self._rows[row], limit)
            for row, limit in zip(wanted.rows, wanted.limits, strict=True)
        ]

    def _proposal(self, text: list[int], limit: int) -> Proposal:
        n = len(text)
        known = next((one for one in self._texts if one[:n] == text and len(one) > n), None)
        if known is None:
            return NOTHING
        drafts = known[n : n + limit]
        for place in range(len(drafts)):
            wrong = self._wrong_in and crc32(bytes((n % 251, place))) % self._wrong_in == 0
            drafts[place] = (drafts[place] + 1) % 50 if wrong else drafts[place]
        return Proposal(drafts, match=24)

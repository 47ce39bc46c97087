"""Drafts out of a row's own text and its tenant's recent answers.

Where a text repeats what was there before, as in an edited passage, a quotation, the next object of
a JSON array or the answer to a question that was asked before, the longest suffix that occurs in
either leads to what comes next; the longer it is, the further it leads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import ClassVar

from workers.speculation.answers import SEPARATOR, Answers
from workers.speculation.history import LONGEST, History
from workers.speculation.source import NOTHING, DraftRows, Proposal

DRAFTS_PER_MATCH = 2
"""Drafts for each token of the match. Where a draft makes a step 6 % longer, more of them and fewer
are both slower (`python -m benchmarks.drafts`); where it is 2 %, twice as many are 1 % quicker."""
SURE = 3
"""Tokens of a match from which a row is taken to copy what follows."""
_BEFORE, _AFTER = 2, 16
"""Where a copy that left out, added or changed something is looked for, around the place where it
would be had it not."""


class _Row:
    __slots__ = ("distance", "history", "n_admitted", "tenant")

    def __init__(self, tokens: Sequence[int], tenant: str) -> None:
        self.history = History(tokens)
        self.n_admitted = len(tokens)
        """Tokens that were there when it was admitted: its prompt, and what it had been given
        before it was preempted, which was added to the answers then."""
        self.tenant = tenant
        self.distance = 0
        """From the end of the text back to the place it was last copied from; 0 before it was."""

    def find(self, tail: array[int], beyond: int) -> tuple[int, int]:
        """Return the longest match with the end of the own text, of more than `beyond` tokens, and
        the place that follows it."""
        text = self.history.text
        match, place = self.history.find(tail, beyond)
        if match >= SURE:
            self.distance = len(text) - place
        elif match and self.distance:
            # What matches so little is in many places. The one where the text went on from is the
            # likeliest: after a word that was changed, the copy goes on behind it.
            expected = len(text) - self.distance
            first = max(0, expected - _BEFORE)
            window = text[first : min(expected + _AFTER, len(text) - 1)]
            if tail[-1] in window:
                near = first + window.index(tail[-1]) + 1
                if text[near - match : near] == tail[-match:]:
                    return match, near
        return match, place


class SuffixSource:
    """Drafts what follows the longest suffix of a row's text that occurs before in it, or in a
    recent answer of its tenant: among equals in the row's own text, then the latest.

    A match of one or two tokens is taken near the passage that the row was copying, if it is there.
    """

    method: ClassVar[str] = "suffix"
    wants_hidden: ClassVar[bool] = False

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._answers = Answers()

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        self._rows[row] = _Row(tokens, tenant)

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        self._rows[row].history.text.extend(tokens)

    def release(self, row: int) -> None:
        state = self._rows.pop(row, None)
        if state is None or len(state.history.text) == state.n_admitted:
            return
        # With the tokens before it, the beginning of an answer can be found as well.
        self._answers.add(state.tenant, state.history.text[max(0, state.n_admitted - LONGEST) :])

    def propose(self, wanted: DraftRows) -> list[Proposal]:
        beyond = max(0, wanted.least_match - 1)
        return [
            self._propose(self._rows[row], limit, beyond)
            for row, limit in zip(wanted.rows, wanted.limits, strict=True)
        ]

    def _propose(self, row: _Row, limit: int, beyond: int) -> Proposal:
        history = row.history
        tail = history.text[-LONGEST:]
        match, place = row.find(tail, beyond)
        answers = self._answers.of(row.tenant)
        if answers is not None and match < LONGEST:
            longer, elsewhere = answers.find(tail, beyond=max(match, beyond))
            if longer:
                drafts = answers.after(elsewhere, min(limit, DRAFTS_PER_MATCH * longer))
                if SEPARATOR in drafts:
                    del drafts[drafts.index(SEPARATOR) :]
                if drafts:
                    return Proposal(drafts, longer)
        if not match:
            return NOTHING
        return Proposal(history.after(place, min(limit, DRAFTS_PER_MATCH * match)), match)

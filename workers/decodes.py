"""The decode rows of a step: one token of each row, and the drafts that are verified behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.table import RowTable

Index = NDArray[np.int64]


class Decodes(NamedTuple):
    """n lines that compute one token each. On the host."""

    sampling: list[int]
    """Their rows, those with the most drafts first."""
    drafts: list[list[int]]
    """Drafts of the first of these rows."""
    rows: Index
    """[n], of the table: those of a row follow each other."""
    inputs: Index
    """[n]: the line of `RowTable.last_tokens` with the token of each."""
    positions: Index
    """[n]"""
    slots: Index
    """[n]: where their keys and values go."""
    by_place: Index
    """[n]: these lines in order of their places behind the rows' last tokens, at each in the order
    of `sampling`."""

    @classmethod
    def of(cls, table: RowTable, rows: Sequence[int], drafts: Mapping[int, list[int]]) -> Decodes:
        """Return the lines of these rows, and write their drafts to the table."""
        if not drafts:
            at = np.asarray(rows, np.int64)
            n_computed = np.fromiter((table[row].n_computed for row in rows), np.int64, len(at))
            slots, every = table.slots(at, n_computed), np.arange(len(at))
            return cls(list(rows), [], at, at, n_computed, slots, every)
        drafting = sorted(
            (row for row in rows if row in drafts), key=lambda row: len(drafts[row]), reverse=True
        )
        sampling = drafting + [row for row in rows if row not in drafts]
        of_rows = [drafts[row] for row in drafting]
        firsts = np.asarray(sampling, np.int64)
        n_computed = np.fromiter((table[row].n_computed for row in sampling), np.int64, len(firsts))
        counts = np.ones(len(firsts), np.int64)
        counts[: len(drafting)] += [len(one) for one in of_rows]
        starts = np.cumsum(counts) - counts
        at = np.repeat(firsts, counts)
        places = np.arange(len(at)) - np.repeat(starts, counts)
        positions = np.repeat(n_computed, counts) + places
        inputs = at.copy()
        inputs[places > 0] = table.put_drafts([token for one in of_rows for token in one])
        by_place = np.argsort(places, kind="stable")
        return cls(sampling, of_rows, at, inputs, positions, table.slots(at, positions), by_place)

    def in_order_of_places(self) -> Decodes:
        """Return these with the lines in the order of `by_place`."""
        if not self.drafts:
            return self
        order = self.by_place
        return self._replace(
            rows=self.rows[order],
            inputs=self.inputs[order],
            positions=self.positions[order],
            slots=self.slots[order],
            by_place=np.arange(len(order)),
        )

from __future__ import annotations

import numpy as np
import pytest
import torch

from tgi_async.wire.messages import Admit, Grow, Sampling
from workers.table import RowTable


def table() -> RowTable:
    return RowTable(max_rows=3, max_total_tokens=9, block_size=4, device=torch.device("cpu"))


def admit(row: int, tokens: list[int], n_cached: int = 0, blocks: list[int] | None = None) -> Admit:
    return Admit(row, tokens, len(tokens), n_cached, blocks or [], Sampling())


def test_a_block_table_grows_in_order_up_to_the_longest_sequence() -> None:
    rows = table()
    rows.admit(admit(1, [1, 2, 3], blocks=[7]))
    rows.grow(Grow(1, [4]))
    rows.grow(Grow(1, [9]))
    assert rows[1].n_blocks == 3
    assert rows.block_tables.tolist() == [[0, 0, 0], [7, 4, 9], [0, 0, 0]]
    with pytest.raises(ValueError, match="row 1 was given 4 blocks and can have 3"):
        rows.grow(Grow(1, [5]))


def test_a_row_is_in_prefill_until_its_known_tokens_are_computed() -> None:
    rows = table()
    rows.admit(admit(0, [1, 2, 3], n_cached=2))
    row = rows[0]
    assert (row.prefilling, row.n_computed, row.length) == (True, 2, 3)
    row.n_computed = 3
    assert not row.prefilling


def test_a_row_knows_the_tokens_that_no_prefix_hit_covers() -> None:
    rows = table()
    rows.admit(admit(0, [5, 6, 7], n_cached=1))
    assert rows[0].tokens[1:].tolist() == [6, 7]


def test_a_row_that_is_admitted_again_remembers_nothing() -> None:
    rows = table()
    rows.admit(admit(0, [1, 2, 3], blocks=[7, 8]))
    rows[0].failed = True
    rows.release(0)
    rows.admit(admit(0, [4], blocks=[9]))
    assert not rows[0].failed
    assert (rows[0].n_blocks, rows[0].n_computed) == (1, 0)
    assert np.array_equal(rows[0].tokens, [4])
    assert rows.block_tables[0, 0] == 9


@pytest.mark.parametrize("row", [0, 2, 3, 1000])
def test_a_row_that_is_not_there_is_named(row: int) -> None:
    rows = table()
    rows.admit(admit(1, [1]))
    rows.admit(admit(2, [1]))
    rows.release(2)
    with pytest.raises(KeyError, match=f"row {row} is not in the batch"):
        rows[row]


def test_a_row_beyond_the_table_is_refused() -> None:
    with pytest.raises(IndexError):
        table().admit(admit(3, [1]))

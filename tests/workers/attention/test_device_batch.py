"""A forward pass as the kernels of a GPU read it, here with a cache on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.device_batch import SPLIT, DecodeNumbers, DeviceBatch, decode_numbers
from workers.attention.layer import AttentionShape
from workers.attention.triton_paged import TritonAttention


def context(**changed: Any) -> AttentionContext:
    """Two decode rows and two chunks, of five tokens behind three and of one; blocks of four."""
    fields: dict[str, Any] = {
        "cache": PagedCache(1, 5, 4, 1, 16, torch.float32),
        "slot_mapping": torch.tensor([7, 15, 3, 4, 5, 6, 7, 16]),
        "n_decode": 2,
        "decode_block_tables": torch.tensor([[1, 0], [2, 3]], dtype=torch.int32),
        "decode_lengths": torch.tensor([4, 8], dtype=torch.int32),
        "prefills": [
            Prefill(2, 5, 8, torch.tensor([0, 1], dtype=torch.int32)),
            Prefill(7, 1, 1, torch.tensor([4], dtype=torch.int32)),
        ],
    }
    return AttentionContext(**(fields | changed))


def test_tiles_say_where_their_tokens_their_context_and_their_table_are() -> None:
    batch = DeviceBatch.of(context(), 2)
    # Of the first row's two blocks, its four positions need one.
    assert batch.tables.tolist() == [1, 2, 3, 0, 1, 4]
    assert batch.starts.tolist() == [0, 1]
    assert batch.tiles.tolist() == [[2, 2, 5, 3], [4, 2, 7, 3], [6, 1, 8, 3], [7, 1, 1, 5]]
    assert batch.slots.tolist() == [7, 15, 3, 4, 5, 6, 7, 16]
    assert batch.lengths.tolist() == [4, 8]
    assert batch.chunks is None


def test_the_partial_results_of_a_row_lie_behind_those_of_the_rows_before() -> None:
    one = context(
        cache=PagedCache(1, 2, 3 * SPLIT, 1, 16, torch.float32),
        slot_mapping=torch.arange(4),
        n_decode=4,
        decode_block_tables=torch.ones(4, 1, dtype=torch.int32),
        decode_lengths=torch.tensor([SPLIT, SPLIT + 1, 3 * SPLIT, 1], dtype=torch.int32),
        prefills=[],
    )
    batch = DeviceBatch.of(one, 16)
    assert batch.parts.tolist() == [0, 1, 3, 6, 7]
    assert batch.most_parts == 7


def test_a_batch_of_decodes_has_no_tiles_and_one_of_chunks_no_rows() -> None:
    decodes = DeviceBatch.of(context(slot_mapping=torch.tensor([7, 15]), prefills=[]), 64)
    assert decodes.tiles.shape == (0, 4)
    none = torch.empty(0, 0, dtype=torch.int32)
    chunk = Prefill(0, 3, 3, torch.tensor([2], dtype=torch.int32))
    one = context(
        slot_mapping=torch.arange(8, 11),
        n_decode=0,
        decode_block_tables=none,
        decode_lengths=none[0:0].flatten(),
        prefills=[chunk],
    )
    chunks = DeviceBatch.of(one, 64)
    assert (chunks.parts.tolist(), chunks.most_parts, chunks.lengths.tolist()) == ([0], 0, [])
    assert chunks.tiles.tolist() == [[0, 3, 3, 0]]


def test_it_is_one_tensor_whose_parts_all_begin_at_16_bytes() -> None:
    batch = DeviceBatch.of(context(), 1)
    parts = [part for part in batch if isinstance(part, torch.Tensor)]
    begins = [part.data_ptr() - batch.slots.data_ptr() for part in parts]
    assert {part.dtype for part in parts} == {torch.int32}
    assert {part.untyped_storage().data_ptr() for part in parts} == {batch.slots.data_ptr()}
    assert [begin % 16 for begin in begins] == [0] * 6


def test_all_layers_of_a_forward_pass_share_it() -> None:
    one = context()
    attention = TritonAttention(AttentionShape(64, 1, 16, torch.float32))
    assert attention.metadata(one) is attention.metadata(one)
    assert len(attention.metadata(one).tiles) == 6
    assert len(DeviceBatch.of(one, 5).tiles) == 2


def test_packed_chunks_have_running_sums_and_tables_of_one_width() -> None:
    batch = DeviceBatch.of(context(), 2, packed=True)
    assert batch.chunks is not None
    *tensors, most_queries, most_keys = batch.chunks
    assert [x.tolist() for x in tensors] == [[0, 5, 6], [0, 8, 9], [8, 1], [[0, 1], [4, 0]]]
    assert (most_queries, most_keys) == (5, 8)
    assert batch.tables.tolist() == [1, 2, 3, 0, 1, 4, 0]
    assert batch.tiles.tolist() == [[2, 2, 5, 3], [4, 2, 7, 3], [6, 1, 8, 3], [7, 1, 1, 5]]
    storage = batch.slots.untyped_storage().data_ptr()
    assert {x.untyped_storage().data_ptr() for x in tensors} == {storage}
    decodes = context(slot_mapping=torch.tensor([7, 15]), prefills=[])
    assert DeviceBatch.of(decodes, 2, packed=True).chunks is None


def numbers(
    lengths: list[int], tables: list[list[int]], rows: list[int] | None = None
) -> DecodeNumbers:
    of = np.array(lengths, np.int32)
    lines = None if rows is None else np.array(rows)
    return decode_numbers(of, np.array(tables, np.int32), -(-of // 4), lines)


def test_rows_that_are_not_there_take_no_room() -> None:
    blocks = list(range(SPLIT))
    found = numbers([0, 5, 0, SPLIT + 1, 0], [blocks, blocks], [0, 1, 0, 1, 0])
    assert found.starts.tolist() == [0, 0, 2, 2, 2 + SPLIT // 4 + 1]
    assert found.tables.tolist() == [0, 1, *range(SPLIT // 4 + 1)]
    assert found.parts.tolist() == [0, 0, 1, 1, 3, 3]
    assert {x.dtype for x in found} == {np.dtype(np.int32)}


def test_tables_are_lines_of_a_matrix_in_any_order() -> None:
    tables = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    assert numbers([9, 4, 5], tables).tables.tolist() == [10, 11, 12, 20, 30, 31]
    assert numbers([5, 12], tables, [2, 0]).tables.tolist() == [30, 31, 10, 11, 12]
    none = numbers([], tables, [])
    assert [x.tolist() for x in none] == [[], [0], []]


@pytest.mark.parametrize(
    ("slots", "lengths", "tables", "said"),
    [
        ([7, -1], [4, 0], [[1], [1]], None),
        ([20, 8], [4, 4], [[1], [2]], "number 0 of slots is 20, allowed are -1 to 19"),
        ([-2, 8], [4, 4], [[1], [2]], "number 0 of slots is -2"),
        ([7, 8], [4, 4], [[1], [5]], "number 1 of block tables is 5, allowed are 0 to 4"),
        ([7, 8], [4, 4], [[-1], [2]], "number 0 of block tables is -1"),
        ([7, 8], [4, 5], [[1, 2], [2, 3]], None),
    ],
)
def test_numbers_outside_the_cache_are_refused(
    slots: list[int], lengths: list[int], tables: list[list[int]], said: str | None
) -> None:
    cache = PagedCache(1, 5, 4, 1, 16, torch.float32)
    found = numbers(lengths, tables)
    given = np.array(slots), np.array(lengths, np.int32)
    if said is None:
        found.expect_within(cache, *given)
        with pytest.raises(ValueError, match="number 1 of lengths is 9, allowed are 0 to"):
            found.expect_within(cache, given[0], np.array([lengths[0], 9], np.int32))
        return
    with pytest.raises(ValueError, match=said):
        found.expect_within(cache, *given)

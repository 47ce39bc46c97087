"""A forward pass as the kernels of a GPU read it, here with a cache on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.device_batch import SPLIT, DeviceBatch


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
    batch = context().on_device(2)
    assert batch.tables.tolist() == [1, 0, 2, 3, 0, 1, 4]
    assert batch.tiles.tolist() == [[2, 2, 5, 4], [4, 2, 7, 4], [6, 1, 8, 4], [7, 1, 1, 6]]
    assert batch.slots.tolist() == [7, 15, 3, 4, 5, 6, 7, 16]
    assert batch.lengths.tolist() == [4, 8]
    assert batch.table_width == 2


def test_the_partial_results_of_a_row_lie_behind_those_of_the_rows_before() -> None:
    batch = context(
        cache=PagedCache(1, 2, 3 * SPLIT, 1, 16, torch.float32),
        slot_mapping=torch.arange(4),
        n_decode=4,
        decode_block_tables=torch.ones(4, 1, dtype=torch.int32),
        decode_lengths=torch.tensor([SPLIT, SPLIT + 1, 3 * SPLIT, 1], dtype=torch.int32),
        prefills=[],
    ).on_device(16)
    assert batch.parts.tolist() == [0, 1, 3, 6]
    assert (batch.n_parts, batch.most_parts) == (7, 3)


def test_a_batch_of_decodes_has_no_tiles_and_one_of_chunks_no_rows() -> None:
    decodes = context(slot_mapping=torch.tensor([7, 15]), prefills=[]).on_device(64)
    assert decodes.tiles.shape == (0, 4)
    none = torch.empty(0, 0, dtype=torch.int32)
    chunk = Prefill(0, 3, 3, torch.tensor([2], dtype=torch.int32))
    chunks = context(
        slot_mapping=torch.arange(8, 11),
        n_decode=0,
        decode_block_tables=none,
        decode_lengths=none[0:0].flatten(),
        prefills=[chunk],
    ).on_device(64)
    assert (chunks.n_parts, chunks.most_parts, chunks.lengths.tolist()) == (0, 0, [])
    assert chunks.tiles.tolist() == [[0, 3, 3, 0]]


def test_it_is_one_tensor_whose_parts_all_begin_at_16_bytes() -> None:
    batch = context().on_device(1)
    parts = [part for part in batch if isinstance(part, torch.Tensor)]
    begins = [part.data_ptr() - batch.slots.data_ptr() for part in parts]
    assert {part.dtype for part in parts} == {torch.int32}
    assert {part.untyped_storage().data_ptr() for part in parts} == {batch.slots.data_ptr()}
    assert [begin % 16 for begin in begins] == [0, 0, 0, 0, 0]


def test_all_layers_of_a_forward_pass_share_it() -> None:
    one = context()
    assert one.on_device(2) is one.on_device(2)
    assert len(DeviceBatch.of(one, 5).tiles) == 2

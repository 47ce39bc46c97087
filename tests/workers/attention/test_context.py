"""The context refuses what would make attention read or write outside the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.native import NativeAttention


def context(**changed: Any) -> AttentionContext:
    """Two decode rows and a chunk of five tokens behind a prefix of three; four blocks of four."""
    fields: dict[str, Any] = {
        "cache": PagedCache(1, 4, 4, 1, 16, torch.float32),
        "slot_mapping": torch.arange(7),
        "n_decode": 2,
        "decode_block_tables": torch.tensor([[1, 0], [2, 3]], dtype=torch.int32),
        "decode_lengths": torch.tensor([4, 8], dtype=torch.int32),
        "prefills": [Prefill(2, 5, 8, torch.tensor([0, 1], dtype=torch.int32))],
    }
    return AttentionContext(**(fields | changed))


def test_spans_are_decode_rows_and_then_chunks_cut_to_size() -> None:
    made = context()
    # As many positions at once as 64 query vectors are of.
    two, all_at_once = (
        NativeAttention(AttentionShape(n_heads, 1, 16, torch.float32)) for n_heads in (32, 1)
    )
    tables = made.decode_block_tables.data_ptr()
    chunk = made.prefills[0].block_table.data_ptr()
    assert two.metadata(made).tolist() == [
        [0, 1, 4, tables, 0, 0],
        [1, 1, 8, tables + 8, 0, 0],
        [2, 1, 4, chunk, 0, 0],
        [3, 2, 6, chunk, 0, 0],
        [5, 2, 8, chunk, 0, 0],
    ]
    assert all_at_once.metadata(made)[2:].tolist() == [[2, 5, 8, chunk, 0, 0]]
    assert two.metadata(made) is two.metadata(made)
    assert made.n_tokens == 7


def chunk(start: int, n: int, length: int, table: list[int]) -> list[Prefill]:
    return [Prefill(start, n, length, torch.tensor(table, dtype=torch.int32))]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"slot_mapping": torch.arange(8)}, r"slot_mapping is torch.int64 \[8\]"),
        ({"slot_mapping": torch.arange(7, dtype=torch.int32)}, "slot_mapping is torch.int32"),
        ({"slot_mapping": torch.arange(10, 17)}, "10 to 16, allowed are 0 to 15"),
        ({"slot_mapping": torch.arange(-1, 6)}, "-1 to 5"),
        ({"decode_block_tables": torch.tensor([[1], [4]], dtype=torch.int32)}, "1 to 4"),
        ({"decode_block_tables": torch.ones(3, 2, dtype=torch.int32)}, "decode_block_tables is"),
        ({"decode_lengths": torch.tensor([4, 9], dtype=torch.int32)}, "allowed are 0 to 7"),
        ({"decode_lengths": torch.tensor([0, 8], dtype=torch.int32)}, "-1 to 7"),
        ({"decode_lengths": torch.tensor([4, 8])}, "decode_lengths is torch.int64"),
        ({"prefills": chunk(3, 5, 8, [0, 1])}, "start at packed token 2"),
        ({"prefills": chunk(2, 5, 9, [0, 1])}, "fit a block table of 2 blocks"),
        ({"prefills": chunk(2, 5, 4, [0, 1])}, "length 4"),
        ({"prefills": chunk(2, 5, 8, [0, 4])}, "0 to 4, allowed are 0 to 3"),
    ],
)
def test_numbers_outside_the_cache_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        context(**changed)


def test_an_empty_forward_pass_is_refused() -> None:
    none = torch.zeros(0, dtype=torch.int32)
    with pytest.raises(ValueError, match="at least one token"):
        context(
            slot_mapping=none.long(),
            n_decode=0,
            decode_block_tables=none.reshape(0, 0),
            decode_lengths=none,
            prefills=[],
        )


def test_a_captured_forward_pass_has_nothing_on_the_host() -> None:
    shape = AttentionShape(1, 1, 16, torch.float32)
    backend, other, numbers = TorchAttention(shape), NativeAttention(shape), object()
    made = AttentionContext.captured(context().cache, 2, {backend: numbers})
    assert (made.n_tokens, made.n_decode, made.prefills) == (2, 2, [])
    assert backend.metadata(made) is numbers
    q = torch.zeros(1, 1, 2, 16)
    made.expect_fitting(q, q, q)
    with pytest.raises(RuntimeError, match="on the device only"):
        other.metadata(made)
    with pytest.raises(RuntimeError, match="on the device only"):
        other.forward(AttentionLayer(0, 1.0), q, q, q, made)

"""Decode rows whose contexts begin in the same blocks, which the kernel reads once for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.paged_batch import plain
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.native import NativeAttention

BLOCK = 16


class Rows:
    """Decode rows over pools of random numbers; the first `shared` tokens are also row 0's."""

    def __init__(
        self,
        lengths: list[int],
        shared: list[int],
        heads: tuple[int, int],
        dim: int,
        dtype: torch.dtype,
    ) -> None:
        generator = torch.Generator().manual_seed(dim + len(lengths))
        self.attention = NativeAttention(AttentionShape(*heads, dim, dtype))
        blocks = [-(-length // BLOCK) for length in lengths]
        self.cache = PagedCache(1, sum(blocks), BLOCK, heads[1], dim, dtype)
        for pool in self.cache.keys + self.cache.values:
            pool.copy_(torch.randn(pool.shape, generator=generator))
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        own = torch.randperm(sum(blocks), generator=generator).to(torch.int32).split(blocks)
        self.tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
        for row, (table, n) in enumerate(zip(own, shared, strict=True)):
            self.tables[row, : len(table)] = table
            self.tables[row, : n // BLOCK] = self.tables[0, : n // BLOCK]
        self.query = torch.randn(1, heads[0], len(lengths), dim, generator=generator).to(dtype)
        at = self.lengths.long() - 1
        slots = self.tables.long()[torch.arange(len(lengths)), at // BLOCK] * BLOCK + at % BLOCK
        self.slots = slots
        pools = (self.cache.keys[0], self.cache.values[0])
        self.newest = [
            pool[slots // BLOCK, :, slots % BLOCK].transpose(0, 1)[None] for pool in pools
        ]

    def attend(self, rows: list[int], **options: Any) -> torch.Tensor:
        """[len(rows), n_heads, dim] of these rows in one batch."""
        context = AttentionContext(
            self.cache,
            self.slots[rows],
            len(rows),
            self.tables[rows].contiguous(),
            self.lengths[rows].contiguous(),
        )
        key, value = (one[:, :, rows] for one in self.newest)
        layer = AttentionLayer(0, 0.125, **options)
        return self.attention.forward(layer, self.query[:, :, rows], key, value, context)[0]

    def plainly(self, row: int) -> torch.Tensor:
        """[n_heads, dim] without a kernel."""
        at = torch.arange(int(self.lengths[row]))
        blocks = self.tables[row].long()[at // BLOCK]
        k, v = (x[0][blocks, :, at % BLOCK] for x in (self.cache.keys, self.cache.values))
        return plain(self.query[0, :, [row]].transpose(0, 1), k, v, 0.125, 0, 0.0, 0, None, None)[0]


ROWS = {
    "a prefix of all": ([700, 641, 1300, 655, 700], [0, 640, 640, 640, 640]),
    "longer and shorter ones": ([900, 900, 900, 300, 900], [0, 880, 400, 256, 130]),
    "more rows than are taken together": ([300] * 70, [0] + [256] * 69),
    "no whole part": ([200, 200, 129], [0, 112, 128]),
    "two prefixes in turns": ([600, 600, 600, 600], [0, 512, 0, 512]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("heads", "dim"), [((9, 3), 64), ((4, 4), 48), ((14, 2), 16)])
def test_a_row_has_the_bits_that_it_has_alone(
    rows: tuple[list[int], list[int]], heads: tuple[int, int], dim: int, dtype: torch.dtype
) -> None:
    given = Rows(*rows, heads, dim, dtype)
    everyone = list(range(len(rows[0])))
    together = given.attend(everyone)
    for row in everyone[:6] + everyone[-2:]:
        assert torch.equal(together[row], given.attend([row])[0])
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    for row in everyone[:3]:
        assert (together[row].float() - given.plainly(row)).abs().max() < tolerance


@pytest.mark.parametrize(
    "options",
    [
        {"window": 400},
        {"window": 1000},
        {"chunk": 256},
        {"softcap": 5.0},
        {"sinks": torch.linspace(-1.0, 1.0, 6)},
        {"slopes": torch.linspace(0.01, 0.5, 6)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_row_sees_of_shared_blocks_is_its_own(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    given = Rows([700, 641, 1300, 655, 1100], [0, 640, 640, 640, 640], (6, 2), 64, dtype)
    together = given.attend([0, 1, 2, 3, 4], **options)
    for row in range(5):
        assert torch.equal(together[row], given.attend([row], **options)[0])


def test_a_block_that_differs_ends_what_is_shared() -> None:
    given = Rows([520, 520, 520], [0, 512, 512], (6, 2), 64, torch.bfloat16)
    before = given.attend([0, 1, 2])
    swapped = given.tables[2, 8].item()
    given.tables[2, 8] = given.tables[2, -1]
    after = given.attend([0, 1, 2])
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])
    assert torch.equal(after[2], given.attend([2])[0])
    assert swapped == given.tables[0, 8]

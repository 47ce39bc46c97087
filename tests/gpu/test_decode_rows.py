"""Decode attention over batches as CUDA graphs have them: rows that are not there, more room than
is needed, any number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.paged_batch import plain

pytest.importorskip("triton", reason="the package triton is not installed")

from workers.attention import triton_paged
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.device_batch import SPLIT, DeviceBatch, decode_numbers
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.triton_paged import TritonAttention

DIM, BLOCK = 20, 16
SCALE = 0.3


class Rows:
    """Rows of these lengths, all but their last keys and values in the cache. Tables are lines of a
    wider matrix in another order, as those of a server are."""

    def __init__(
        self, device: str, lengths: list[int], n_heads: int = 6, n_kv_heads: int = 2
    ) -> None:
        draw = torch.Generator().manual_seed(len(lengths))
        self.heads = (n_heads, n_kv_heads)
        self.lengths = np.array(lengths, np.int32)
        self.n_blocks = -(-self.lengths // BLOCK)
        n = int(self.n_blocks.sum()) + 1
        self.cache = PagedCache(1, n, BLOCK, n_kv_heads, DIM, torch.float32, device)
        for pool in self.cache.keys + self.cache.values:
            pool.copy_(torch.randn(pool.shape, generator=draw))
        order = (1 + torch.randperm(n - 1, generator=draw)).numpy().astype(np.int32)
        self.lines = torch.randperm(len(lengths) + 3, generator=draw).numpy()[: len(lengths)]
        self.tables = np.full((len(lengths) + 3, max(self.n_blocks) + 2), n + 1000, np.int32)
        ends = np.cumsum(self.n_blocks)
        for line, end, blocks in zip(self.lines, ends, self.n_blocks, strict=True):
            self.tables[line, :blocks] = order[end - blocks : end]
        last = np.maximum(self.lengths - 1, 0)
        block = self.tables[self.lines, last // BLOCK]
        self.slots = np.where(self.lengths > 0, block * BLOCK + last % BLOCK, -1).astype(np.int32)
        self.q, self.k, self.v = (
            torch.randn(1, h, len(lengths), DIM, generator=draw).to(device)
            for h in (n_heads, n_kv_heads, n_kv_heads)
        )

    def batch(
        self, extra_rows: int = 0, extra_parts: int = 0, extra_blocks: int = 0
    ) -> DeviceBatch:
        """With more room than that, filled as a graph's is."""
        numbers = decode_numbers(self.lengths, self.tables, self.n_blocks, self.lines)
        numbers.expect_within(self.cache, self.slots, self.lengths)

        def padded(part: np.ndarray, more: int, filling: int) -> torch.Tensor:
            whole = np.pad(part, (0, more), constant_values=filling)
            return torch.from_numpy(whole).to(self.cache.keys[0].device)

        n_parts = int(numbers.parts[-1])
        tables = padded(numbers.tables, extra_blocks, 2**30)
        return DeviceBatch(
            slots=padded(self.slots, extra_rows, -1),
            lengths=padded(self.lengths, extra_rows, 0),
            starts=padded(numbers.starts, extra_rows, 0),
            parts=padded(numbers.parts, extra_rows, n_parts),
            tables=tables,
            tiles=tables[:0].view(0, 4),
            most_parts=n_parts + extra_parts,
        )

    def attend(
        self,
        batch: DeviceBatch,
        window: int = 0,
        chunk: int = 0,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows of the batch, heads, DIM]"""
        more = batch.lengths.numel() - len(self.lengths)
        q, k, v = (
            torch.nn.functional.pad(x, (0, 0, 0, more), value=float("nan"))
            for x in (self.q, self.k, self.v)
        )
        attention = TritonAttention(AttentionShape(*self.heads, DIM, torch.float32))
        context = AttentionContext.captured(self.cache, q.shape[2], {attention: batch})
        layer = AttentionLayer(0, SCALE, window, chunk, sinks=sinks)
        return attention.forward(layer, q, k, v, context)[0]

    def expected(
        self, window: int = 0, chunk: int = 0, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Of what is in the cache, the keys and values of the last positions included."""
        out = torch.zeros(len(self.lengths), self.heads[0], DIM)
        for row, length in enumerate(self.lengths):
            if not length:
                continue
            blocks = torch.from_numpy(self.tables[self.lines[row], : self.n_blocks[row]]).long()
            keys, values = (
                pool[0].cpu()[blocks].transpose(1, 2).flatten(0, 1)[:length]
                for pool in (self.cache.keys, self.cache.values)
            )
            query = self.q[0, :, row : row + 1].cpu().transpose(0, 1)
            out[row] = plain(query, keys, values, SCALE, window, 0.0, chunk, sinks, None)[0]
        return out


LENGTHS = [0, 1, 5 * SPLIT + 3, 0, 0, 17, SPLIT, SPLIT + 1, 0, 700, 0]


@pytest.mark.parametrize(
    ("window", "chunk", "sunk"),
    [
        (0, 0, False),
        (0, 0, True),
        (7, 0, False),
        (257, 0, True),
        (2 * SPLIT, 0, False),
        (0, 300, False),
        (0, 2 * SPLIT, False),
    ],
)
def test_rows_that_are_not_there_are_zeros_beside_those_that_are(
    device: str, window: int, chunk: int, sunk: bool
) -> None:
    rows = Rows(device, LENGTHS)
    sinks = torch.arange(6) * 0.7 - 1.0 if sunk else None
    given = None if sinks is None else sinks.to(device)
    found = rows.attend(rows.batch(), window, chunk, given).cpu()
    assert float((found - rows.expected(window, chunk, sinks)).abs().max()) < 1e-5
    assert all(bool((found[i] == 0).all()) == (n == 0) for i, n in enumerate(LENGTHS))


@pytest.mark.parametrize("n", [300, pytest.param(1030, marks=pytest.mark.full)])
def test_hundreds_of_rows(device: str, n: int) -> None:
    # Most are not there: the interpreter takes long for each.
    lengths = [0 if i % 9 else i % 40 for i in range(n)]
    lengths[n // 2] = 2 * SPLIT + 40
    lengths[-1] = 3
    rows = Rows(device, lengths, 1, 1)
    found = rows.attend(rows.batch()).cpu()
    assert float((found - rows.expected()).abs().max()) < 1e-5


@pytest.mark.parametrize("window", [0, 300])
def test_room_that_is_not_needed_changes_no_bit(device: str, window: int) -> None:
    rows = Rows(device, LENGTHS)
    exact = rows.attend(rows.batch(), window)
    roomy = rows.attend(rows.batch(extra_rows=5, extra_parts=40, extra_blocks=64), window)
    assert torch.equal(roomy[: len(LENGTHS)], exact)
    assert not roomy[len(LENGTHS) :].any()


def test_how_many_programs_there_are_changes_no_bit(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(device, LENGTHS)
    found = []
    for n in (1, 3):
        monkeypatch.setattr(triton_paged, "multiprocessors", lambda _, n=n: n)
        found.append(rows.attend(rows.batch()))
    assert torch.equal(*found)


def test_only_tokens_with_a_slot_are_written(device: str) -> None:
    rows = Rows(device, LENGTHS)
    before = [pool.clone() for pool in (rows.cache.keys[0], rows.cache.values[0])]
    rows.attend(rows.batch(extra_rows=3))
    there = torch.from_numpy(rows.slots[rows.slots >= 0]).long().to(device)
    for pool, old, new in zip(
        (rows.cache.keys[0], rows.cache.values[0]), before, (rows.k, rows.v), strict=True
    ):
        lines = new[0].transpose(0, 1)[torch.from_numpy(rows.slots >= 0).to(device)]
        old[there // BLOCK, :, there % BLOCK] = lines
        assert torch.equal(pool, old)

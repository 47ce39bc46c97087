"""The attention metadata of a forward pass on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workers.attention.backend import AttentionCapture, DecodeRows, PaddedArray
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.transfer import send

SPLIT = 128
"""Positions of a context that decode attention walks at once: few, so that even one short text
keeps many programs busy, and enough that partial results are small beside what they are of. It does
not depend on the batch, so that neither does the order in which a row's context is added up."""
ALIGNMENT = 4
"""Numbers that each part of the copy is padded to a multiple of: 16 bytes, so that Triton does not
compile one kernel for aligned addresses and another for others."""
MOST_BLOCKS = 2**20
"""Most blocks of all block tables of a captured step: 4 MiB to be copied. Longer ones run without a
graph."""
MOST_PARTS = 2**14
"""Most parts of all contexts of a captured step, even if the cache is larger: sequences that share
blocks may together be longer than the cache. Partial results of so many take 256 MiB for 32 heads
of 128."""


class Chunks(NamedTuple):
    """The chunks of prefills in the form of flash-attn: packed, with a block table each."""

    queries: torch.Tensor
    """int32 [n_chunks + 1]: running sum of their positions."""
    keys: torch.Tensor
    """int32 [n_chunks + 1]: running sum of `lengths`."""
    lengths: torch.Tensor
    """int32 [n_chunks]: positions of each sequence after its chunk."""
    tables: torch.Tensor
    """int32 [n_chunks, most blocks of one], padded with 0."""
    most_queries: int
    most_keys: int


class DeviceBatch(NamedTuple):
    """Where the tokens of a forward pass are, as int32 tensors on the cache's device."""

    slots: torch.Tensor
    """[n_tokens]: block * block_size + offset, where each token's key and value are put; negative
    where nothing is."""
    lengths: torch.Tensor
    """[n_decode]: positions of each decode row, the current one included; 0 for a row that is not
    there, whose output is zeros."""
    starts: torch.Tensor
    """[n_decode]: where in `tables` the block table of each decode row begins."""
    parts: torch.Tensor
    """[n_decode + 1]: running sum of how many times SPLIT positions, or the rest of them, there are
    in each decode row. Each is attended to by itself, and gives one partial result."""
    tables: torch.Tensor
    """[n]: block tables, those of decode rows before those of chunks."""
    tiles: torch.Tensor
    """[n_tiles, 4]: chunks cut to some positions each. First packed token, positions, context
    length after the last of them, where in `tables` the block table starts."""
    most_parts: int
    """No less than the last of `parts`; makes room for the partial results."""
    chunks: Chunks | None = None
    """The same as `tiles`, where asked for."""

    @staticmethod
    def of(context: AttentionContext, positions: int, packed: bool = False) -> DeviceBatch:
        """Return the batch, in one copy from pinned memory that does not wait for the device. The
        context was validated on the host before. Tiles have at most `positions` positions;
        `packed`: with `chunks`, which makes the block tables of chunks equally wide."""
        lengths = context.decode_lengths.numpy()
        rows = context.decode_block_tables.numpy()
        starts, parts, tables = decode_numbers(
            lengths, rows, -(-lengths // context.cache.block_size)
        )
        chunk_tables = _chunk_tables(context, packed)
        tiles = list(_tiles(context, positions, tables.size, chunk_tables))
        arrays = [
            # Blocks are numbered in int32, and no GPU holds 2**31 positions.
            context.slot_mapping.numpy().astype(np.int32),
            lengths,
            starts,
            parts,
            np.concatenate([tables, *chunk_tables]),
            np.concatenate([np.empty((0, 4), np.int32), *tiles]).ravel(),
        ]
        if packed:
            new = np.array([chunk.n for chunk in context.prefills], np.int32)
            after = np.array([chunk.length for chunk in context.prefills], np.int32)
            arrays += [_running_sum(new), _running_sum(after), after]
        slots, sent_lengths, sent_starts, sent_parts, sent_tables, flat_tiles, *sent = (
            _send_together(arrays, context.cache.keys[0].device)
        )
        batch = DeviceBatch(
            slots,
            sent_lengths,
            sent_starts,
            sent_parts,
            sent_tables,
            flat_tiles.view(-1, 4),
            int(parts[-1]),
        )
        if not packed or not context.prefills:
            return batch
        pages = batch.tables[tables.size :].view(len(new), -1)
        queries, keys, sent_after = sent
        return batch._replace(
            chunks=Chunks(queries, keys, sent_after, pages, int(new.max()), int(after.max()))
        )


class DecodeNumbers(NamedTuple):
    """The decode rows of a `DeviceBatch`, on the host."""

    starts: NDArray[np.int32]
    parts: NDArray[np.int32]
    tables: NDArray[np.int32]

    def expect_within(
        self, cache: PagedCache, slots: NDArray[np.integer], lengths: NDArray[np.int32]
    ) -> None:
        """Raise ValueError for rows [n] of these `lengths`, written at `slots`, that would make
        attention read or write outside the cache or after a row's own blocks.

        For what fills the tensors of a captured pass; a context checks its own.
        """
        held = np.diff(self.starts, append=len(self.tables)) * cache.block_size
        for name, numbers, least, most in (
            ("slots", slots, -1, cache.n_blocks * cache.block_size - 1),
            ("block tables", self.tables, 0, cache.n_blocks - 1),
            ("lengths", lengths, 0, held),
        ):
            wrong = (numbers < least) | (numbers > most)
            if wrong.any():
                at = int(wrong.argmax())
                limit = most[at] if isinstance(most, np.ndarray) else most
                raise ValueError(
                    f"number {at} of {name} is {numbers[at]}, allowed are {least} to {limit}"
                )


def decode_numbers(
    lengths: NDArray[np.int32],
    block_tables: NDArray[np.int32],
    n_blocks: NDArray[np.integer],
    rows: NDArray[np.integer] | None = None,
) -> DecodeNumbers:
    """Return the numbers of decode rows: `lengths` [n] of them, of whose block tables the first
    `n_blocks` [n] blocks are taken. The block tables are the lines `rows` [n] of `block_tables`
    [any, width], or all of them in order."""
    ends = np.cumsum(n_blocks, dtype=np.int32)
    starts = ends - n_blocks.astype(np.int32)
    width = block_tables.shape[1]
    lines = np.arange(len(lengths)) if rows is None else rows.astype(np.int64)
    n = int(ends[-1]) if len(ends) else 0
    # Each block is found by its number in the flattened tables: the time does not depend on how
    # wide the longest row makes them.
    at = np.repeat(lines * width - starts, n_blocks) + np.arange(n)
    return DecodeNumbers(starts, _running_sum(-(-lengths // SPLIT)), block_tables.ravel()[at])


class DecodeCapture(AttentionCapture):
    """A `DeviceBatch` of decode rows in the input buffers of a CUDA graph."""

    def __init__(self, cache: PagedCache, n_rows: int, most_positions: int) -> None:
        self._cache = cache
        self.sizes = dict.fromkeys(("slots", "lengths", "starts"), n_rows) | {"parts": n_rows + 1}
        in_cache = cache.n_blocks * cache.block_size // SPLIT + n_rows
        self._most_parts = min(max(in_cache, MOST_PARTS), n_rows * -(-most_positions // SPLIT))
        self.most_rest = min(MOST_BLOCKS, n_rows * -(-most_positions // cache.block_size))

    def fill(self, rows: DecodeRows) -> tuple[dict[str, PaddedArray], NDArray[np.int32]] | None:
        """See `AttentionCapture`."""
        slots, lengths, tables, lines = rows
        decode = decode_numbers(lengths, tables, -(-lengths // self._cache.block_size), lines)
        n_parts = int(decode.parts[-1])
        if len(decode.tables) > self.most_rest or n_parts > self._most_parts:
            return None
        decode.expect_within(self._cache, slots, lengths)
        parts: dict[str, PaddedArray] = {
            "slots": (slots, -1),
            "lengths": (lengths, 0),
            "starts": (decode.starts, 0),
            "parts": (decode.parts, n_parts),
        }
        return parts, decode.tables

    def metadata(self, parts: Mapping[str, torch.Tensor]) -> DeviceBatch:
        """See `AttentionCapture`."""
        tables = parts["rest"]
        return DeviceBatch(
            slots=parts["slots"],
            lengths=parts["lengths"],
            starts=parts["starts"],
            parts=parts["parts"],
            tables=tables,
            tiles=tables[:0].view(0, 4),
            most_parts=self._most_parts,
        )


def _running_sum(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the running sum int32 [n + 1] of [n]; it begins with 0."""
    sums = np.zeros(len(numbers) + 1, np.int32)
    np.cumsum(numbers, out=sums[1:])
    return sums


def _send_together(arrays: list[NDArray[np.int32]], device: torch.device) -> list[torch.Tensor]:
    """Send flat int32 arrays in one copy."""
    sizes = [array.size for array in arrays]
    padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    begins = np.cumsum([0, *padded[:-1]]).tolist()
    together = np.zeros(sum(padded), np.int32)
    for begin, array in zip(begins, arrays, strict=True):
        together[begin : begin + array.size] = array
    sent = send(together, device)
    return [sent[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


def _chunk_tables(context: AttentionContext, equal: bool) -> list[NDArray[np.int32]]:
    """Return the blocks that each chunk needs; equally many for each if `equal`."""
    size = context.cache.block_size
    tables = [chunk.block_table.numpy()[: -(-chunk.length // size)] for chunk in context.prefills]
    if equal:
        widest = max((len(table) for table in tables), default=0)
        tables = [np.pad(table, (0, widest - len(table))) for table in tables]
    return tables


def _tiles(
    context: AttentionContext, positions: int, table: int, tables: list[NDArray[np.int32]]
) -> Iterator[NDArray[np.int32]]:
    """Return int32 [n, 4] of each chunk; their `tables` begin at `table`."""
    for chunk, blocks in zip(context.prefills, tables, strict=True):
        first = np.arange(0, chunk.n, positions, dtype=np.int32)
        last = np.minimum(first + positions, chunk.n)
        before = chunk.length - chunk.n
        start = np.full_like(first, table)
        yield np.stack((chunk.start + first, last - first, before + last, start), axis=1)
        table += len(blocks)

"""What GPU kernels must know of a forward pass, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workers.sampling.transfer import send

if TYPE_CHECKING:
    from workers.attention.context import AttentionContext

SPLIT = 256
"""Positions of a context that one program of decode attention walks. It does not depend on the
batch, so that neither does the order in which a row's context is added up."""
ALIGNMENT = 4
"""Numbers that each part of the copy is padded to a multiple of: 16 bytes, so that Triton does not
compile one kernel for aligned addresses and another for others."""


class DeviceBatch(NamedTuple):
    """An AttentionContext as int32 tensors on the cache's device.

    One copy out of pinned memory, which does not wait for the device. The context was validated on
    the host before.
    """

    slots: torch.Tensor
    """[n_tokens]"""
    lengths: torch.Tensor
    """[n_decode]: positions of each decode row, the current one included."""
    parts: torch.Tensor
    """[n_decode]: where those of each row begin, among one partial result for every SPLIT positions
    of every row."""
    tables: torch.Tensor
    """[n]: the block tables of the decode rows, each `table_width` long, then those of chunks."""
    tiles: torch.Tensor
    """[n_tiles, 4]: chunks cut to some positions each. First packed token, positions, context
    length after the last of them, where in `tables` the block table starts."""
    table_width: int
    n_parts: int
    most_parts: int
    """Of one row; 0 without decode rows."""

    @staticmethod
    def of(context: AttentionContext, positions: int) -> DeviceBatch:
        """Its tiles have at most `positions` positions."""
        rows = context.decode_block_tables.numpy()
        lengths = context.decode_lengths.numpy()
        n_parts = -(-lengths // SPLIT)
        chunks = [chunk.block_table.numpy() for chunk in context.prefills]
        parts = [
            # Blocks are numbered in int32, and no GPU holds 2**31 positions.
            context.slot_mapping.numpy().astype(np.int32),
            lengths,
            np.cumsum(n_parts, dtype=np.int32) - n_parts,
            np.concatenate([rows.ravel(), *chunks]),
            np.concatenate([np.empty((0, 4), np.int32), *_tiles(context, positions)]).ravel(),
        ]
        sizes = [part.size for part in parts]
        padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        packed = np.zeros(sum(padded), np.int32)
        begins = np.cumsum([0, *padded[:-1]]).tolist()
        for begin, part in zip(begins, parts, strict=True):
            packed[begin : begin + part.size] = part
        sent = send(packed, context.cache.keys[0].device)
        slots, sent_lengths, first_parts, tables, tiles = (
            sent[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)
        )
        return DeviceBatch(
            slots,
            sent_lengths,
            first_parts,
            tables,
            tiles.view(-1, 4),
            rows.shape[1],
            int(n_parts.sum()),
            int(n_parts.max(initial=0)),
        )


def _tiles(context: AttentionContext, positions: int) -> Iterator[NDArray[np.int32]]:
    """int32 [n, 4] of each chunk."""
    table = context.decode_block_tables.numel()
    for chunk in context.prefills:
        first = np.arange(0, chunk.n, positions, dtype=np.int32)
        last = np.minimum(first + positions, chunk.n)
        before = chunk.length - chunk.n
        start = np.full_like(first, table)
        yield np.stack((chunk.start + first, last - first, before + last, start), axis=1)
        table += chunk.block_table.numel()

"""What attention must know about a forward pass: where each packed token belongs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from workers.attention.cache import PagedCache
from workers.attention.device_batch import DeviceBatch


class Prefill(NamedTuple):
    """A chunk of a prompt among the packed tokens."""

    start: int
    """Offset of its first token in the packed tokens."""
    n: int
    length: int
    """Positions of the sequence after this chunk; equal to `n` for a prompt's first chunk."""
    block_table: torch.Tensor
    """int32 [at least ceil(length / block_size)]"""


@dataclass(slots=True, eq=False)
class AttentionContext:
    """Built once for each forward pass; transformers' code finds it by `PagedAttention.over`.

    The packed tokens are one token of each decode row, then the chunks of `prefills`. All tensors
    are on the host, whatever device the cache is on.

    Raises ValueError where a tensor has another dtype or shape than stated, or names a block or a
    slot outside the cache: attention trusts these numbers with memory.
    """

    cache: PagedCache
    slot_mapping: torch.Tensor
    """int64 [n_tokens]: block * block_size + offset, where each token's key and value are put."""
    n_decode: int
    decode_block_tables: torch.Tensor
    """int32 [n_decode, max_blocks], padded with 0."""
    decode_lengths: torch.Tensor
    """int32 [n_decode]: positions of the sequence, the current one included."""
    prefills: list[Prefill] = field(default_factory=list)
    _spans: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _on_device: dict[int, DeviceBatch] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise ValueError("a forward pass needs at least one token, got none")
        self._expect("slot_mapping", self.slot_mapping, torch.int64, (self.n_tokens,))
        self._below("slot_mapping", self.slot_mapping, self.cache.n_blocks * self.cache.block_size)
        tables = self.decode_block_tables
        max_blocks = tables.shape[-1]
        self._expect("decode_block_tables", tables, torch.int32, (self.n_decode, max_blocks))
        self._expect("decode_lengths", self.decode_lengths, torch.int32, (self.n_decode,))
        self._below("decode_block_tables", tables, self.cache.n_blocks)
        self._below("decode_lengths - 1", self.decode_lengths - 1, self._held(max_blocks))
        at = self.n_decode
        for chunk in self.prefills:
            n_blocks = chunk.block_table.numel()
            self._expect("block_table", chunk.block_table, torch.int32, (n_blocks,))
            self._below("block_table", chunk.block_table, self.cache.n_blocks)
            if chunk.start != at or not 1 <= chunk.n <= chunk.length <= self._held(n_blocks):
                raise ValueError(
                    f"prefill chunk (start {chunk.start}, n {chunk.n}, length {chunk.length}) must "
                    f"start at packed token {at} and fit a block table of {n_blocks} blocks"
                )
            at += chunk.n

    @property
    def n_tokens(self) -> int:
        return self.n_decode + sum(chunk.n for chunk in self.prefills)

    def spans(self, max_positions: int) -> torch.Tensor:
        """int64 [n_spans, 4]: first packed token, positions, context length after the last of
        them, address of the block table. Chunks are cut evenly, to at most `max_positions`.

        The work of a forward pass as kernels take it; made by the first layer that asks.
        """
        spans = self._spans.get(max_positions)
        if spans is None:
            tables = self.decode_block_tables
            row = torch.arange(self.n_decode)
            address = tables.data_ptr() + row * (tables.shape[-1] * tables.element_size())
            decode = torch.stack((row, torch.ones_like(row), self.decode_lengths, address), dim=1)
            cut = [
                (
                    chunk.start + begin,
                    end - begin,
                    chunk.length - chunk.n + end,
                    chunk.block_table.data_ptr(),
                )
                for chunk in self.prefills
                for begin, end in _cut(chunk.n, max_positions)
            ]
            chunks = torch.tensor(cut, dtype=torch.int64).reshape(-1, 4)
            spans = self._spans[max_positions] = torch.cat((decode, chunks))
        return spans

    def on_device(self, max_positions: int) -> DeviceBatch:
        """The same for the kernels of a GPU, chunks cut to tiles of at most `max_positions`; made
        by the first layer that asks.
        """
        batch = self._on_device.get(max_positions)
        if batch is None:
            batch = self._on_device[max_positions] = DeviceBatch.of(self, max_positions)
        return batch

    def expect_fitting(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Raises ValueError for a layer's tensors that do not fit the cache and this forward pass.

        Query is [1, n_heads, n_tokens, head_dim], key and value are [1, n_kv_heads, n_tokens,
        head_dim], of the cache's dtype.
        """
        cache = self.cache
        fitting = (1, cache.n_kv_heads, self.slot_mapping.numel(), cache.head_dim)
        n_heads = query.shape[1]
        if (
            query.shape != (1, n_heads, *fitting[2:])
            or n_heads % cache.n_kv_heads
            or not key.shape == value.shape == fitting
            or not query.dtype == key.dtype == value.dtype == cache.dtype
        ):
            raise ValueError(
                f"query {query.dtype} {list(query.shape)}, key {key.dtype} {list(key.shape)} and "
                f"value {value.dtype} {list(value.shape)} do not fit the cache and this forward "
                f"pass, which take keys of {cache.dtype} {list(fitting)}"
            )

    def _held(self, n_blocks: int) -> int:
        return n_blocks * self.cache.block_size

    @staticmethod
    def _expect(
        name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, expected a contiguous {dtype} "
                f"{list(shape)}"
            )

    @staticmethod
    def _below(name: str, tensor: torch.Tensor, limit: int) -> None:
        if tensor.numel() == 0:
            return
        least, most = (int(x) for x in tensor.aminmax())
        if least < 0 or most >= limit:
            raise ValueError(f"{name} ranges from {least} to {most}, allowed are 0 to {limit - 1}")


def _cut(n: int, most: int) -> Iterator[tuple[int, int]]:
    """Begin and end of as few parts of at most `most` as can be, all but equal in size."""
    parts = -(-n // most)
    for part in range(parts):
        yield n * part // parts, n * (part + 1) // parts

"""The attention context of a forward pass: where each packed token belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from workers.attention.cache import PagedCache


class Prefill(NamedTuple):
    """A chunk of a prompt among the packed tokens."""

    start: int
    """Offset of its first token in the packed tokens."""
    n: int
    length: int
    """Positions of the sequence after this chunk; equal to `n` for a prompt's first chunk."""
    block_table: torch.Tensor
    """int32 [at least ceil(length / block_size)]"""
    spans: tuple[tuple[int, int], ...] = ()
    """Start and end of positions of this chunk that attend to each other in both directions."""


@dataclass(slots=True, eq=False)
class AttentionContext:
    """Built once for each forward pass; transformers' code finds it by `PagedAttention.over`.

    The packed tokens are one token of each decode row, then the chunks of `prefills`. All tensors
    are on the host, whatever device the cache is on; but see `captured`.

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
    metadata: dict[object, object] = field(default_factory=dict, init=False, repr=False)
    """The metadata of each attention backend; see `AttentionBackend.metadata`."""
    _captured: bool = field(default=False, repr=False)

    @classmethod
    def captured(
        cls, cache: PagedCache, n_rows: int, metadata: Mapping[Any, object]
    ) -> AttentionContext:
        """Return the context of a captured decode step, whose numbers change between replays.

        They are in the `metadata`, by backend, which is read on the device only and whose addresses
        must stay; nothing is on the host, so what fills them checks them before
        (`AttentionCapture.fill`).
        """
        none = torch.empty(0, 0, dtype=torch.int32)
        made = cls(cache, none.flatten().long(), n_rows, none, none.flatten(), _captured=True)
        made.metadata.update(metadata)
        return made

    def __post_init__(self) -> None:
        if self._captured:
            return
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
            if any(not chunk.length - chunk.n <= a <= b <= chunk.length for a, b in chunk.spans):
                raise ValueError(
                    f"spans {list(chunk.spans)} are not within positions "
                    f"{chunk.length - chunk.n} to {chunk.length - 1} of their chunk"
                )
            at += chunk.n

    @property
    def causal(self) -> bool:
        """Whether every token attends to none behind it."""
        return not any(chunk.spans for chunk in self.prefills)

    @property
    def n_tokens(self) -> int:
        return self.n_decode + sum(chunk.n for chunk in self.prefills)

    def expect_on_host(self) -> None:
        """Raise RuntimeError for a captured forward pass, of which nothing is on the host."""
        if self._captured:
            raise RuntimeError("a captured forward pass has its numbers on the device only")

    def expect_fitting(
        self, query: torch.Tensor, key: torch.Tensor | None, value: torch.Tensor | None
    ) -> None:
        """Raise ValueError for a layer's tensors that do not fit the cache and this forward pass.

        Query is [1, n_heads, n_tokens, head_dim], key and value are [1, n_kv_heads, n_tokens,
        head_dim], of the cache's dtype. Key and value may both be None.
        """
        cache, n_tokens = self.cache, self.n_tokens
        n_heads = query.shape[1]
        fitting = (1, n_heads, n_tokens, cache.head_dim)
        if query.shape != fitting or n_heads % cache.n_kv_heads or query.dtype != cache.dtype:
            raise ValueError(
                f"query {query.dtype} {list(query.shape)} and a cache of {cache.n_kv_heads} "
                f"key-value heads in {cache.dtype} do not fit: this forward pass takes "
                f"{list(fitting)}"
            )
        if key is None and value is None:
            return
        if key is None or value is None:
            raise ValueError("key and value do not fit each other: one of them is None")
        fitting = (1, cache.n_kv_heads, n_tokens, cache.head_dim)
        if not key.shape == value.shape == fitting or not key.dtype == value.dtype == cache.dtype:
            raise ValueError(
                f"key {key.dtype} {list(key.shape)} and value {value.dtype} {list(value.shape)} do "
                f"not fit the cache and this forward pass, which take {cache.dtype} {list(fitting)}"
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

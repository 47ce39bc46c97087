"""The paged key-value cache: what layers keep, and for every layer pools of keys and values."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tgi_async.wire.messages import CacheKind
from workers.attention.kv_codes import UNSCALED, KvCodes, KvScales, Pool


class CacheSpec(NamedTuple):
    """What a layer keeps of a text. Layers that keep the same share blocks."""

    n_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    """Of keys and values as they come and as they are attended to."""
    kind: CacheKind = "full"
    codes: KvCodes | None = None
    """What they are stored as; None: as they are."""

    @property
    def stored(self) -> str:
        """The name of what they are stored as."""
        return f"{self.dtype}".removeprefix("torch.") if self.codes is None else self.codes.name


class CacheGroup(NamedTuple):
    """Layers with equal caches: a block is one of all of them at once."""

    spec: CacheSpec
    layers: tuple[int, ...]
    """Their numbers."""
    scales: tuple[KvScales, ...]
    """Of the codes of each layer."""

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes that one block takes in all layers of the group."""
        n_kv_heads, head_dim, dtype, _, codes = self.spec
        return PagedCache.bytes_per_block(
            len(self.layers), block_size, n_kv_heads, head_dim, dtype, codes
        )

    def pool(
        self, n_blocks: int, block_size: int, device: torch.device | str = "cpu"
    ) -> PagedCache:
        """Return memory for so many blocks."""
        n_kv_heads, head_dim, dtype, _, codes = self.spec
        pool = PagedCache(
            len(self.layers), n_blocks, block_size, n_kv_heads, head_dim, dtype, device, codes
        )
        pool.scales = list(self.scales)
        return pool


class PagedCache:
    """Pools of shape [n_blocks, n_kv_heads, block_size, head_dim], two for each layer: of numbers
    of `dtype`, or of `codes` that stand for such, with their scales.

    The memory is neither zeroed nor touched before a token is written into it, so that a large
    pool costs nothing until it is used; what an unwritten slot holds is arbitrary, NaN included.

    Raises ValueError for a count below 1.
    """

    def __init__(
        self,
        n_layers: int,
        n_blocks: int,
        block_size: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        codes: KvCodes | None = None,
    ) -> None:
        shape = (n_blocks, n_kv_heads, block_size, head_dim)
        if n_layers < 1 or min(shape) < 1:
            raise ValueError(
                f"a paged cache needs at least one of everything, got {n_layers} layers of {shape} "
                "(blocks, key-value heads, block size, head dim)"
            )
        self.n_layers = n_layers
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.n_kv_heads = n_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.codes = codes
        stored = dtype if codes is None else codes.stored
        self.keys = [torch.empty(shape, dtype=stored, device=device) for _ in range(n_layers)]
        self.values = [torch.empty(shape, dtype=stored, device=device) for _ in range(n_layers)]
        rows = 2 * n_layers if codes is not None and codes.of_rows else 0
        self.row_scales = [torch.empty(shape[:3], device=device) for _ in range(rows)]
        """float32 [n_blocks, n_kv_heads, block_size] of each layer's keys, then of its values;
        empty for codes without scales of rows."""
        self.scales = [UNSCALED] * n_layers
        """Of the codes of each layer, where rows have none."""
        self.pointers = [
            (keys.data_ptr(), values.data_ptr())
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def pools(self, layer: int) -> tuple[Pool, Pool]:
        """Return the keys and the values of a layer."""
        of_keys, of_values = self.row_scales[2 * layer : 2 * layer + 2] or (None, None)
        scales = self.scales[layer]
        return (
            Pool(self.keys[layer], of_keys, scales.key),
            Pool(self.values[layer], of_values, scales.value),
        )

    @staticmethod
    def bytes_per_block(
        n_layers: int,
        block_size: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        codes: KvCodes | None = None,
    ) -> int:
        """Bytes that one block takes in all layers, keys and values and their scales together."""
        size = dtype.itemsize if codes is None else codes.stored.itemsize
        row = head_dim * size + (0 if codes is None else codes.scale_bytes)
        return 2 * n_layers * block_size * n_kv_heads * row

    @property
    def bytes(self) -> int:
        """Bytes of all pools when every block has been written."""
        return self.n_blocks * self.bytes_per_block(
            self.n_layers,
            self.block_size,
            self.n_kv_heads,
            self.head_dim,
            self.dtype,
            self.codes,
        )

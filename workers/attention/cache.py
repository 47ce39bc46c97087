"""The paged key-value cache: what layers keep, and for every layer pools of keys and values."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tgi_async.wire.messages import CacheKind


class CacheSpec(NamedTuple):
    """What a layer keeps of a text. Layers that keep the same share blocks."""

    n_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kind: CacheKind = "full"


class CacheGroup(NamedTuple):
    """Layers with equal caches: a block is one of all of them at once."""

    spec: CacheSpec
    layers: tuple[int, ...]
    """Their numbers."""

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes that one block takes in all layers of the group."""
        n_kv_heads, head_dim, dtype, _ = self.spec
        return PagedCache.bytes_per_block(len(self.layers), block_size, n_kv_heads, head_dim, dtype)

    def pool(
        self, n_blocks: int, block_size: int, device: torch.device | str = "cpu"
    ) -> PagedCache:
        """Return memory for so many blocks."""
        n_kv_heads, head_dim, dtype, _ = self.spec
        return PagedCache(
            len(self.layers), n_blocks, block_size, n_kv_heads, head_dim, dtype, device
        )


class PagedCache:
    """Pools of shape [n_blocks, n_kv_heads, block_size, head_dim], two for each layer.

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
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.pointers = [
            (keys.data_ptr(), values.data_ptr())
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    @staticmethod
    def bytes_per_block(
        n_layers: int, block_size: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        """Bytes that one block takes in all layers, keys and values together."""
        return 2 * n_layers * block_size * n_kv_heads * head_dim * dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all pools when every block has been written."""
        return self.n_blocks * self.bytes_per_block(
            self.n_layers, self.block_size, self.n_kv_heads, self.head_dim, self.dtype
        )

"""Paged attention on a GPU through Triton kernels of ours, for pages of any size."""

from __future__ import annotations

import torch
import triton

from workers.attention import triton_kernels as kernels
from workers.attention.context import AttentionContext
from workers.attention.device_batch import SPLIT

SPLITS_AT_ONCE = 16
KEY_BYTES = 16 * 1024
"""Of keys, and of values, that a program holds in shared memory for each stage of its pipeline."""
QUERY_BYTES = 32 * 1024
"""Of queries that it holds there at most. All together fit the 99 KiB of the smallest GPUs."""


class TritonAttention:
    """Writes new keys and values into the cache and attends: at most four launches, and no waiting
    for the device.

    Raises ValueError for a shape of model that the kernels do not take.
    """

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        # A product of matrices takes at least 16 in each direction.
        width = max(16, triton.next_power_of_2(head_dim))
        row = width * dtype.itemsize
        group = n_heads // n_kv_heads
        limit = min(128, QUERY_BYTES // row)
        self._decode_m = max(16, triton.next_power_of_2(group))
        if self._decode_m > limit or n_heads % n_kv_heads:
            raise ValueError(
                f"attention on a GPU takes up to {limit} heads of {head_dim} numbers in {dtype} to "
                f"each key-value head, not {n_heads} to {n_kv_heads}"
            )
        self._prefill_m = max(self._decode_m, min(256 // dtype.itemsize, limit))
        self._n_heads, self._group = n_heads, group
        self._kv = {"N_KV_HEADS": n_kv_heads, "DIM": head_dim, "WIDTH": width}
        self._n = min(128, max(16, KEY_BYTES // row))
        self._widest = max(width, self._n) * dtype.itemsize
        # Two stages load the next keys during the products of these; wide rows leave no room.
        self._stages = 2 if self._n * row <= KEY_BYTES else 1

    def _tile(self, m: int) -> dict[str, int]:
        """A tile of `m` query vectors, and the warps whose registers hold it."""
        return {"M": m, "num_warps": 8 if m * self._widest >= KEY_BYTES else 4}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        context: AttentionContext,
        scale: float,
        window: int,
        softcap: float,
        chunk: int = 0,
        sinks: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `paged.Attend`."""
        context.expect_fitting(query, key, value)
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        cache = context.cache
        keys, values = cache.keys[layer], cache.values[layer]
        batch = context.on_device(self._prefill_m // self._group)
        _, n_heads, n_tokens, head_dim = query.shape
        if n_heads != self._n_heads:
            raise ValueError(f"a layer has {n_heads} heads where others have {self._n_heads}")
        out = query.new_empty((1, n_tokens, n_heads, head_dim))
        kernels.write[(n_tokens,)](
            keys,
            values,
            key,
            value,
            batch.slots,
            key.stride(2),
            key.stride(1),
            value.stride(2),
            value.stride(1),
            HEADS=triton.next_power_of_2(cache.n_kv_heads),
            BLOCK_SIZE=cache.block_size,
            **self._kv,
        )
        shape = {
            "GROUP": self._group,
            "BLOCK_SIZE": cache.block_size,
            "WINDOW": window,
            "SOFTCAP": softcap,
            "CHUNK": chunk,
            "SLOPES": slopes is not None,
            "N": self._n,
            "num_stages": self._stages,
            **self._kv,
        }
        strides = (query.stride(2), query.stride(1))
        # What is not there is not read; a pointer has to be given all the same.
        no_heads = batch.lengths
        sunk, sloped = (no_heads if x is None else x for x in (sinks, slopes))
        n_tiles = len(batch.tiles)
        if n_tiles:
            kernels.prefill[(n_tiles, cache.n_kv_heads)](
                out,
                query,
                keys,
                values,
                batch.tables,
                batch.tiles,
                *strides,
                scale,
                sunk,
                sloped,
                SINKS=sinks is not None,
                **self._tile(self._prefill_m),
                **shape,
            )
        n_decode = context.n_decode
        if not n_decode:
            return out
        n_splits = batch.most_parts
        if window or chunk:
            n_splits = min(n_splits, -(-(window or chunk) // SPLIT) + 1)
        parts = out.new_empty((batch.n_parts, n_heads, head_dim), dtype=torch.float32)
        logs = parts.new_empty((batch.n_parts, n_heads))
        kernels.decode[(n_decode, cache.n_kv_heads, n_splits)](
            parts,
            logs,
            query,
            keys,
            values,
            batch.tables,
            batch.lengths,
            batch.parts,
            *strides,
            scale,
            sloped,
            batch.table_width,
            SPLIT=SPLIT,
            **self._tile(self._decode_m),
            **shape,
        )
        kernels.combine[(n_decode, n_heads)](
            out,
            parts,
            logs,
            batch.lengths,
            batch.parts,
            sunk,
            N_HEADS=n_heads,
            WINDOW=window,
            CHUNK=chunk,
            SINKS=sinks is not None,
            SPLIT=SPLIT,
            AT_ONCE=SPLITS_AT_ONCE,
            DIM=head_dim,
            WIDTH=self._kv["WIDTH"],
        )
        return out

"""Paged attention on a GPU through Triton kernels of ours, for pages of any size."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from workers.attention import triton_kernels as kernels
from workers.attention.context import AttentionContext
from workers.attention.device_batch import SPLIT, DeviceBatch
from workers.attention.flash import PackedPrefill

SPLITS_AT_ONCE = 16
ROWS_AT_ONCE = 256
"""Decode rows of which a program looks up at once whose split it has."""
KEY_BYTES = 16 * 1024
"""Of keys, and of values, that a program holds in shared memory for each stage of its pipeline."""
QUERY_BYTES = 32 * 1024
"""Of queries that it holds there at most. All together fit the 99 KiB of the smallest GPUs."""
MULTIPROCESSORS = 4
"""Where there is no GPU to count them."""


class _Call(NamedTuple):
    """What a layer asks for; see `paged.Attend`."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    """Of keys and values, the pools."""
    batch: DeviceBatch
    out: torch.Tensor
    """[1, n_tokens, n_heads, head_dim]"""
    scale: float
    window: int
    softcap: float
    chunk: int
    sinks: torch.Tensor | None
    slopes: torch.Tensor | None


class TritonAttention:
    """Writes new keys and values into the cache and attends: at most four launches, and no waiting
    for the device.

    `prefill` attends to the chunks of what it takes; the Triton kernel to the others. Raises
    ValueError for a shape of model that the kernels do not take.
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        prefill: PackedPrefill | None = None,
    ) -> None:
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
        self._programs = 1
        """Of decode attention, that a multiprocessor has registers for. More of them would begin
        when the first ones have done all their work."""
        if self._tile(self._decode_m)["num_warps"] == 4:
            self._programs = 3 if width <= 128 else 2
        self._prefill = prefill

    def batch(self, context: AttentionContext) -> DeviceBatch:
        """The forward pass as these kernels read it."""
        return context.on_device(self._prefill_m // self._group, self._prefill is not None)

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
        self.write(key, value, layer, context)
        return self.attend(query, layer, context, scale, window, softcap, chunk, sinks, slopes)

    def write(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, context: AttentionContext
    ) -> None:
        """Put new keys and values, both [1, n_kv_heads, n_tokens, head_dim], into the cache."""
        key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (key, value))
        cache = context.cache
        kernels.write[(context.n_tokens,)](
            cache.keys[layer],
            cache.values[layer],
            key,
            value,
            self.batch(context).slots,
            key.stride(2),
            key.stride(1),
            value.stride(2),
            value.stride(1),
            HEADS=triton.next_power_of_2(cache.n_kv_heads),
            BLOCK_SIZE=cache.block_size,
            **self._kv,
        )

    def attend(
        self,
        query: torch.Tensor,
        layer: int,
        context: AttentionContext,
        scale: float,
        window: int,
        softcap: float,
        chunk: int = 0,
        sinks: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`paged.Attend` for keys and values that are in the cache already. Query [1, n_heads,
        n_tokens, head_dim] -> [1, n_tokens, n_heads, head_dim], contiguous."""
        context.expect_fitting_query(query)
        _, n_heads, n_tokens, head_dim = query.shape
        if n_heads != self._n_heads:
            raise ValueError(f"a layer has {n_heads} heads where others have {self._n_heads}")
        call = _Call(
            query if query.stride(3) == 1 else query.contiguous(),
            context.cache.keys[layer],
            context.cache.values[layer],
            self.batch(context),
            query.new_empty((1, n_tokens, n_heads, head_dim)),
            scale,
            window,
            softcap,
            chunk,
            sinks,
            slopes,
        )
        if len(call.batch.tiles):
            self._attend_chunks(call)
        if context.n_decode:
            self._attend_rows(call)
        return call.out

    def _attend_chunks(self, call: _Call) -> None:
        batch = call.batch
        prefill, n_decode = self._prefill, len(batch.lengths)
        plain = not call.chunk and call.sinks is None and call.slopes is None
        if prefill and batch.chunks and plain and (not call.softcap or prefill.CAPS):
            call.out[0, n_decode:] = prefill(
                call.query[0, :, n_decode:].transpose(0, 1),
                call.keys,
                call.values,
                batch.chunks,
                call.scale,
                call.window,
                call.softcap,
            )
            return
        kernels.prefill[(len(batch.tiles), self._kv["N_KV_HEADS"])](
            call.out,
            call.query,
            call.keys,
            call.values,
            batch.tables,
            batch.tiles,
            call.query.stride(2),
            call.query.stride(1),
            call.scale,
            _given(call.sinks, batch),
            _given(call.slopes, batch),
            SINKS=call.sinks is not None,
            **self._tile(self._prefill_m),
            **self._constants(call),
        )

    def _attend_rows(self, call: _Call) -> None:
        batch, n_kv_heads = call.batch, self._kv["N_KV_HEADS"]
        n_decode = len(batch.lengths)
        partial = call.out.new_empty((batch.most_parts, *call.out.shape[2:]), dtype=torch.float32)
        logs = partial.new_empty(partial.shape[:2])
        reach = call.window or call.chunk
        seen = -(-reach // SPLIT) + 1 if reach else 0
        most = n_decode * seen if seen else batch.most_parts
        at_once = multiprocessors(call.query.device) * self._programs // n_kv_heads
        kernels.decode[(max(1, min(most, at_once)), n_kv_heads)](
            partial,
            logs,
            call.query,
            call.keys,
            call.values,
            batch.tables,
            batch.lengths,
            batch.starts,
            batch.parts,
            call.query.stride(2),
            call.query.stride(1),
            call.scale,
            _given(call.slopes, batch),
            n_decode,
            SPLIT=SPLIT,
            SEEN=seen,
            AT_ONCE=ROWS_AT_ONCE,
            **self._tile(self._decode_m),
            **self._constants(call),
        )
        kernels.combine[(n_decode, self._n_heads)](
            call.out,
            partial,
            logs,
            batch.lengths,
            batch.parts,
            _given(call.sinks, batch),
            N_HEADS=self._n_heads,
            WINDOW=call.window,
            CHUNK=call.chunk,
            SINKS=call.sinks is not None,
            SPLIT=SPLIT,
            AT_ONCE=SPLITS_AT_ONCE,
            DIM=self._kv["DIM"],
            WIDTH=self._kv["WIDTH"],
        )

    def _constants(self, call: _Call) -> dict[str, Any]:
        """Of both kernels that attend."""
        return {
            "GROUP": self._group,
            "BLOCK_SIZE": call.keys.shape[2],
            "WINDOW": call.window,
            "SOFTCAP": call.softcap,
            "CHUNK": call.chunk,
            "SLOPES": call.slopes is not None,
            "N": self._n,
            "num_stages": self._stages,
            **self._kv,
        }

    def _tile(self, m: int) -> dict[str, int]:
        """A tile of `m` query vectors, and the warps whose registers hold it."""
        return {"M": m, "num_warps": 8 if m * self._widest >= KEY_BYTES else 4}


def _given(per_head: torch.Tensor | None, batch: DeviceBatch) -> torch.Tensor:
    """What is not there is not read; an address has to be given all the same."""
    return batch.lengths if per_head is None else per_head


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count

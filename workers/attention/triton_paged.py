"""Paged attention on a GPU through Triton kernels of ours, for pages of any size."""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any, ClassVar

import torch

from workers.attention.backend import AttentionBackend
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.device_batch import SPLIT, DecodeCapture, DeviceBatch
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.packed_prefill import PackedPrefill

LEAST_CAPABILITY = (8, 0)
"""Ampere: what Triton compiles for, and the first with bfloat16."""
SPLITS_AT_ONCE = 16
ROWS_AT_ONCE = 256
"""Decode rows of which a program looks up at once whose split it has."""
KEY_BYTES = 16 * 1024
"""Of keys, and of values, that a program holds in shared memory for each stage of its pipeline."""
QUERY_BYTES = 32 * 1024
"""Of queries that it holds there at most. All together fit the 99 KiB of the smallest GPUs."""
LEAST_TILE = 16
"""A product of matrices takes at least so many in each direction."""
MULTIPROCESSORS = 4
"""Where there is no GPU to count them."""


class TritonAttention(AttentionBackend[DeviceBatch]):
    """Writes new keys and values into the cache and attends: at most four launches, and no waiting
    for the device."""

    name = "triton"
    devices = frozenset({"cuda"})
    reads_codes = True
    PREFILL: ClassVar[type[PackedPrefill] | None] = None
    """What attends to prefills in the place of the Triton kernel, where it takes them."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        # Only a torch built for CUDA brings Triton along.
        from workers.attention import triton_kernels

        self._kernels = triton_kernels
        width = _width(shape)
        row = width * shape.dtype.itemsize
        self._decode_m = max(LEAST_TILE, _power_of_2(shape.group))
        self._prefill_m = max(
            self._decode_m, min(256 // shape.dtype.itemsize, _most_queries(shape))
        )
        self._kv = {"N_KV_HEADS": shape.n_kv_heads, "DIM": shape.head_dim, "WIDTH": width}
        self._n = min(128, max(16, KEY_BYTES // row))
        self._widest = max(width, self._n) * shape.dtype.itemsize
        # Two stages load the next keys during the products of these; wide rows leave no room.
        self._stages = 2 if self._n * row <= KEY_BYTES else 1
        self._programs = 1
        """Of decode attention, that a multiprocessor has registers for. More of them would begin
        when the first ones have done all their work."""
        if self._tile(self._decode_m)["num_warps"] == 4:
            self._programs = 3 if width <= 128 else 2
        self._prefill: PackedPrefill | None = None
        if self.PREFILL is not None:
            try:
                self._prefill = self.PREFILL(shape.head_dim, shape.dtype)
            except ValueError as error:
                self.notes.append(f"prefills run without {self.PREFILL.NAME}: {error}")

    @classmethod
    def refusal(cls) -> str | None:
        """Return why this machine's first GPU cannot be served on by it, or None."""
        return gpu_refusal() or (cls.PREFILL.refusal() if cls.PREFILL else None)

    @classmethod
    def shape_refusal(cls, shape: AttentionShape) -> str | None:
        """Return why the kernels do not take this shape of model, or None."""
        limit = _most_queries(shape)
        fits = max(LEAST_TILE, _power_of_2(shape.group)) <= limit
        if fits and shape.n_heads % shape.n_kv_heads == 0:
            return None
        return (
            f"attention on a GPU takes up to {limit} heads of {shape.head_dim} numbers in "
            f"{shape.dtype} to each key-value head, not {shape.n_heads} to {shape.n_kv_heads}"
        )

    def build(self, batch: AttentionContext) -> DeviceBatch:
        """See `AttentionBackend`."""
        positions = self._prefill_m // self.shape.group
        return DeviceBatch.of(batch, positions, packed=self._prefill is not None)

    def slots(self, batch: AttentionContext) -> torch.Tensor:
        """See `AttentionBackend`."""
        return self.metadata(batch).slots

    def capture(self, cache: PagedCache, n_rows: int, most_positions: int) -> DecodeCapture:
        """See `AttentionBackend`."""
        return DecodeCapture(cache, n_rows, most_positions)

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        batch: AttentionContext,
    ) -> torch.Tensor:
        """See `AttentionBackend`. What it returns is contiguous."""
        batch.expect_fitting(query, key, value)
        _, n_heads, n_tokens, head_dim = query.shape
        if n_heads > self.shape.n_heads:
            raise ValueError(f"a layer has {n_heads} heads where {self.shape.n_heads} are the most")
        on_device = self.metadata(batch)
        if key is not None and value is not None:
            self._write(layer, key, value, on_device, batch.cache)
        query = query if query.stride(3) == 1 else query.contiguous()
        out = query.new_empty((1, n_tokens, n_heads, head_dim))
        if len(on_device.tiles):
            self._attend_chunks(layer, query, batch.cache, on_device, out)
        if batch.n_decode:
            self._attend_rows(layer, query, batch.cache, on_device, out)
        return out

    def _write(
        self,
        layer: AttentionLayer,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: DeviceBatch,
        cache: PagedCache,
    ) -> None:
        key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (key, value))
        self._kernels.write[(key.shape[2],)](
            cache.keys[layer.index],
            cache.values[layer.index],
            key,
            value,
            batch.slots,
            key.stride(2),
            key.stride(1),
            value.stride(2),
            value.stride(1),
            *code_scales(cache, layer.index, batch.lengths),
            HEADS=_power_of_2(cache.n_kv_heads),
            BLOCK_SIZE=cache.block_size,
            CODES=code_number(cache),
            **self._kv,
        )

    def _attend_chunks(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        cache: PagedCache,
        batch: DeviceBatch,
        out: torch.Tensor,
    ) -> None:
        prefill, n_decode = self._prefill, len(batch.lengths)
        plain = not layer.chunk and layer.sinks is None and layer.slopes is None
        if prefill and batch.chunks and plain and (not layer.softcap or prefill.CAPS):
            out[0, n_decode:] = prefill(
                query[0, :, n_decode:].transpose(0, 1),
                cache.keys[layer.index],
                cache.values[layer.index],
                batch.chunks,
                layer.scale,
                layer.window,
                layer.softcap,
            )
            return
        self._kernels.prefill[(len(batch.tiles), self._kv["N_KV_HEADS"])](
            out,
            query,
            cache.keys[layer.index],
            cache.values[layer.index],
            batch.tables,
            batch.tiles,
            query.stride(2),
            query.stride(1),
            layer.scale,
            _given(layer.sinks, batch),
            _given(layer.slopes, batch),
            *code_scales(cache, layer.index, batch.lengths),
            SINKS=layer.sinks is not None,
            **self._tile(self._prefill_m),
            **self._constants(layer, query, cache),
        )

    def _attend_rows(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        cache: PagedCache,
        batch: DeviceBatch,
        out: torch.Tensor,
    ) -> None:
        n_kv_heads, n_heads = self._kv["N_KV_HEADS"], query.shape[1]
        n_decode = len(batch.lengths)
        partial = out.new_empty((batch.most_parts, *out.shape[2:]), dtype=torch.float32)
        logs = partial.new_empty(partial.shape[:2])
        within = layer.window or layer.chunk
        seen = -(-within // SPLIT) + 1 if within else 0
        most = n_decode * seen if seen else batch.most_parts
        at_once = multiprocessors(query.device) * self._programs // n_kv_heads
        self._kernels.decode[(max(1, min(most, at_once)), n_kv_heads)](
            partial,
            logs,
            query,
            cache.keys[layer.index],
            cache.values[layer.index],
            batch.tables,
            batch.lengths,
            batch.starts,
            batch.parts,
            query.stride(2),
            query.stride(1),
            layer.scale,
            _given(layer.slopes, batch),
            *code_scales(cache, layer.index, batch.lengths),
            n_decode,
            SPLIT=SPLIT,
            SEEN=seen,
            AT_ONCE=ROWS_AT_ONCE,
            **self._tile(self._decode_m),
            **self._constants(layer, query, cache),
        )
        self._kernels.combine[(n_decode, n_heads)](
            out,
            partial,
            logs,
            batch.lengths,
            batch.parts,
            _given(layer.sinks, batch),
            N_HEADS=n_heads,
            WINDOW=layer.window,
            CHUNK=layer.chunk,
            SINKS=layer.sinks is not None,
            SPLIT=SPLIT,
            AT_ONCE=SPLITS_AT_ONCE,
            DIM=self._kv["DIM"],
            WIDTH=self._kv["WIDTH"],
        )

    def _constants(
        self, layer: AttentionLayer, query: torch.Tensor, cache: PagedCache
    ) -> dict[str, Any]:
        """Of both kernels that attend."""
        return {
            "GROUP": query.shape[1] // self._kv["N_KV_HEADS"],
            "BLOCK_SIZE": cache.block_size,
            "WINDOW": layer.window,
            "SOFTCAP": layer.softcap,
            "CHUNK": layer.chunk,
            "SLOPES": layer.slopes is not None,
            "CODES": code_number(cache),
            "N": self._n,
            "num_stages": self._stages,
            **self._kv,
        }

    def _tile(self, m: int) -> dict[str, int]:
        """A tile of `m` query vectors, and the warps whose registers hold it."""
        return {"M": m, "num_warps": 8 if m * self._widest >= KEY_BYTES else 4}


def _power_of_2(n: int) -> int:
    """The least that is no less than n."""
    return 1 << (n - 1).bit_length()


def _width(shape: AttentionShape) -> int:
    return max(LEAST_TILE, _power_of_2(shape.head_dim))


def _most_queries(shape: AttentionShape) -> int:
    """Query vectors that a program holds at most."""
    return min(128, QUERY_BYTES // (_width(shape) * shape.dtype.itemsize))


def _given(x: torch.Tensor | None, batch: DeviceBatch) -> torch.Tensor:
    """What is not there is not read; an address has to be given all the same."""
    return batch.lengths if x is None else x


def code_number(cache: PagedCache) -> int:
    """Return CODES of the kernels."""
    return 0 if cache.codes is None else cache.codes.number


def code_scales(
    cache: PagedCache, layer: int, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Return the scales of rows of a layer's keys and values, `other` where there are none, and
    those of all of them."""
    keys, values = cache.pools(layer)
    of_keys, of_values = (x.scales if x.scales is not None else other for x in (keys, values))
    return of_keys, of_values, keys.scale, values.scale


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def gpu_refusal() -> str | None:
    """Return why Triton kernels do not run on this machine's first GPU, or None."""
    if util.find_spec("triton") is None:
        return "paged attention on a GPU needs Triton; install the package triton"
    # Triton builds the glue between Python and a kernel in C.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler (gcc or clang); install one, such as the package gcc"
    # Debian's own scheme for what is installed locally names no folder of headers.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not Path(sysconfig.get_path("include", scheme), "Python.h").is_file():
        return "Triton needs Python.h; install Python's headers, such as python3-dev"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        had, needed = ("{}.{}".format(*each) for each in (capability, LEAST_CAPABILITY))
        return (
            f"{torch.cuda.get_device_name()} has compute capability {had}, and paged "
            f"attention on a GPU needs {needed}"
        )
    return None

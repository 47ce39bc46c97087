"""Paged attention on a CPU by the C kernel, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch

from workers import native
from workers.attention.backend import AttentionBackend
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.layer import AttentionLayer, AttentionShape

DTYPES = (torch.float32, torch.bfloat16)
MAX_HEAD_DIM = 512
MAX_QUERIES = 64
"""Most query vectors, positions times heads that share a key-value head, that the kernel takes at
once."""


class CodesStruct(ctypes.Structure):
    """`kv_codes` of paged_attention.h, field by field."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("key_scale", ctypes.c_double),
        ("value_scale", ctypes.c_double),
    )

    @classmethod
    def of(cls, cache: PagedCache, layer: int) -> CodesStruct:
        """Return what the kernels are told of the codes of a layer."""
        if cache.codes is None:
            return cls()
        keys, values = cache.pools(layer)
        rows = (one.scales for one in (keys, values))
        addresses = (None if one is None else one.data_ptr() for one in rows)
        return cls(cache.codes.number, *addresses, keys.scale, values.scale)


class _Call(ctypes.Structure):
    """`call` of paged_attention.h, field by field."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("q_token", ctypes.c_int64),
        ("q_head", ctypes.c_int64),
        ("k_token", ctypes.c_int64),
        ("k_head", ctypes.c_int64),
        ("v_token", ctypes.c_int64),
        ("v_head", ctypes.c_int64),
        ("n_tokens", ctypes.c_int64),
        ("n_spans", ctypes.c_int64),
        ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("bf16", ctypes.c_int64),
        ("n_threads", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("chunk", ctypes.c_int64),
        ("sinks", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("codes", CodesStruct),
    )


class NativeAttention(AttentionBackend[torch.Tensor]):
    """Writes new keys and values into the cache and attends, in one call.

    Its metadata are the spans of a forward pass for the kernel, int64 [n_spans, 6]: first
    packed token, positions, context length after the last of them, address of the block table, and
    begin and end of positions that all of them see, which they are among; 0 and 0 for none.

    Raises NativeUnavailable where it cannot be compiled or loaded.
    """

    name = "native"
    devices = frozenset({"cpu"})
    reads_codes = True
    causal_only = False

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._positions_at_once = MAX_QUERIES // shape.group
        self._run = native.kernels().paged_attention
        self._run.argtypes = (ctypes.POINTER(_Call),)
        self._run.restype = ctypes.c_int

    @classmethod
    def refusal(cls) -> str | None:
        """Return why it cannot be compiled or loaded, or None. The first call on a machine compiles
        it, which takes some ten seconds."""
        try:
            native.kernels()
        except native.NativeUnavailable as error:
            return str(error)
        return None

    @classmethod
    def shape_refusal(cls, shape: AttentionShape) -> str | None:
        """Return why the kernel does not take this shape, or None."""
        if shape.dtype not in DTYPES:
            return f"it takes float32 and bfloat16, not {shape.dtype}"
        if shape.head_dim % 16 or shape.head_dim > MAX_HEAD_DIM:
            return f"it takes head dims up to {MAX_HEAD_DIM} in steps of 16, not {shape.head_dim}"
        if shape.group > MAX_QUERIES:
            return f"it takes {MAX_QUERIES} heads to a key-value head, not {shape.group}"
        return None

    def build(self, batch: AttentionContext) -> torch.Tensor:
        """See `AttentionBackend`. Chunks are cut where a part begins or ends that attends in both
        directions, and evenly, to as many positions as the kernel takes at once."""
        tables = batch.decode_block_tables
        row = torch.arange(batch.n_decode)
        address = tables.data_ptr() + row * (tables.shape[-1] * tables.element_size())
        none = torch.zeros_like(row)
        decode = torch.stack((row, none + 1, batch.decode_lengths, address, none, none), dim=1)
        cut = [
            (
                chunk.start + first + begin - (chunk.length - chunk.n),
                end - begin,
                first + end,
                chunk.block_table.data_ptr(),
                *whole,
            )
            for chunk in batch.prefills
            for first, n, whole in _parts(chunk)
            for begin, end in _cut(n, self._positions_at_once)
        ]
        return torch.cat((decode, torch.tensor(cut, dtype=torch.int64).reshape(-1, 6)))

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        batch: AttentionContext,
    ) -> torch.Tensor:
        """See `AttentionBackend`. Raises MemoryError."""
        cache = batch.cache
        batch.expect_fitting(query, key, value)
        _, n_heads, n_tokens, head_dim = query.shape
        if n_heads > self.shape.n_heads:
            raise ValueError(f"a layer has {n_heads} heads where {self.shape.n_heads} are the most")
        spans = self.metadata(batch)
        query = _dense(query)
        k, k_token, k_head = None, 0, 0
        v, v_token, v_head = None, 0, 0
        if key is not None and value is not None:
            key, value = _dense(key), _dense(value)
            k, k_token, k_head = key.data_ptr(), key.stride(2), key.stride(1)
            v, v_token, v_head = value.data_ptr(), value.stride(2), value.stride(1)
        out = query.new_empty((1, n_tokens, n_heads, head_dim))
        keys, values = cache.pointers[layer.index]
        failed = self._run(
            _Call(
                keys,
                values,
                query.data_ptr(),
                k,
                v,
                out.data_ptr(),
                batch.slot_mapping.data_ptr(),
                spans.data_ptr(),
                query.stride(2),
                query.stride(1),
                k_token,
                k_head,
                v_token,
                v_head,
                n_tokens,
                spans.shape[0],
                n_heads,
                cache.n_kv_heads,
                head_dim,
                cache.block_size,
                layer.window,
                cache.dtype == torch.bfloat16,
                torch.get_num_threads(),
                layer.scale,
                layer.softcap,
                layer.chunk,
                _address("sinks", layer.sinks, n_heads),
                _address("slopes", layer.slopes, n_heads),
                CodesStruct.of(cache, layer.index),
            )
        )
        if failed:
            raise MemoryError("no memory for the intermediate results of attention")
        return out


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Make the numbers of a head contiguous."""
    return x if x.stride(3) == 1 else x.contiguous()


def _address(name: str, x: torch.Tensor | None, n_heads: int) -> int | None:
    if x is None:
        return None
    if x.dtype != torch.float32 or x.shape != (n_heads,) or not x.is_contiguous():
        raise ValueError(
            f"{name} are contiguous float32 [{n_heads}], got {x.dtype} {list(x.shape)}"
        )
    return x.data_ptr()


def _parts(chunk: Prefill) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Return the first position and the number of those that attend alike, and what all of them
    see."""
    at = chunk.length - chunk.n
    for begin, end in (*chunk.spans, (chunk.length, chunk.length)):
        if at < begin:
            yield at, begin - at, (0, 0)
        if begin < end:
            yield begin, end - begin, (begin, end)
        at = end


def _cut(n: int, most: int) -> Iterator[tuple[int, int]]:
    """Return begin and end of as few parts of at most `most` as possible, almost equal in size."""
    parts = -(-n // most)
    for part in range(parts):
        yield n * part // parts, n * (part + 1) // parts

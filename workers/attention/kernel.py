"""The C kernel of paged attention, called through ctypes."""

from __future__ import annotations

import ctypes

import torch

from workers import native
from workers.attention.context import AttentionContext

DTYPES = (torch.float32, torch.bfloat16)
MAX_HEAD_DIM = 512
MAX_QUERIES = 64
"""Query vectors, positions times heads that share a key-value head, that the kernel takes at once.
"""


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
    )


class Kernel:
    """Writes new keys and values into the cache and attends, in one call.

    Raises NativeUnavailable where it cannot be compiled or loaded.
    """

    def __init__(self) -> None:
        self._run = native.kernels().paged_attention
        self._run.argtypes = (ctypes.POINTER(_Call),)
        self._run.restype = ctypes.c_int

    @staticmethod
    def refusal(n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> str | None:
        """Why this shape of attention is not the kernel's, or None."""
        if dtype not in DTYPES:
            return f"it takes float32 and bfloat16, not {dtype}"
        if head_dim % 16 or head_dim > MAX_HEAD_DIM:
            return f"it takes head dims up to {MAX_HEAD_DIM} in steps of 16, not {head_dim}"
        if n_heads // n_kv_heads > MAX_QUERIES:
            return f"it takes {MAX_QUERIES} heads to a key-value head, not {n_heads // n_kv_heads}"
        return None

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
        """See `paged.Attend`.

        Raises ValueError for tensors that do not fit the cache and the context.
        """
        cache = context.cache
        context.expect_fitting(query, key, value)
        _, n_heads, n_tokens, head_dim = query.shape
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        out = query.new_empty((1, n_tokens, n_heads, head_dim))
        for name, x in (("sinks", sinks), ("slopes", slopes)):
            if x is not None and (
                x.dtype != torch.float32 or x.shape != (n_heads,) or not x.is_contiguous()
            ):
                raise ValueError(
                    f"{name} are contiguous float32 [{n_heads}], got {x.dtype} {list(x.shape)}"
                )
        spans = context.spans(MAX_QUERIES // (n_heads // cache.n_kv_heads))
        keys, values = cache.pointers[layer]
        failed = self._run(
            _Call(
                keys,
                values,
                query.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                out.data_ptr(),
                context.slot_mapping.data_ptr(),
                spans.data_ptr(),
                query.stride(2),
                query.stride(1),
                key.stride(2),
                key.stride(1),
                value.stride(2),
                value.stride(1),
                n_tokens,
                spans.shape[0],
                n_heads,
                cache.n_kv_heads,
                head_dim,
                cache.block_size,
                window,
                cache.dtype == torch.bfloat16,
                torch.get_num_threads(),
                scale,
                softcap,
                chunk,
                None if sinks is None else sinks.data_ptr(),
                None if slopes is None else slopes.data_ptr(),
            )
        )
        if failed:
            raise MemoryError("no memory for the intermediate results of attention")
        return out

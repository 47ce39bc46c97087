"""The argmax of each row, which is all that a greedy step needs."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from workers import native


def max_and_argmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each row of scores [n, V] and its index: [n], int64 [n].

    A row that holds NaN has the maximum NaN.
    """
    find = _kernel() if scores.is_cpu and scores.dtype is torch.float32 else None
    if find is None or not scores.is_contiguous() or not scores.numel():
        # torch.argmax of bfloat16 takes five times as long on the CPU.
        values, places = scores.max(-1)
        return values, places
    n, width = scores.shape
    values, places = scores.new_empty(n), scores.new_empty(n, dtype=torch.int64)
    find(scores.data_ptr(), n, width, values.data_ptr(), places.data_ptr(), torch.get_num_threads())
    return values, places


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """Load `row_argmax` of argmax.c. torch splits a row among threads that it must wake first."""
    try:
        find = native.kernels().row_argmax
    except native.NativeUnavailable:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    find.argtypes = (pointer, integer, integer, pointer, pointer, integer)
    find.restype = None
    return find

"""Restrict rows to the tokens that their grammars allow."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers import native
from workers.transfer import send


class Allowed(NamedTuple):
    """The tokens that some of the B rows of a step may sample."""

    lines: NDArray[np.int64]
    """[m]: those rows, each by its place among the B."""
    bits: NDArray[np.int32]
    """[m, ceil(V / 32)]: token i is bit i % 32 of word i // 32."""


def mask_out(scores: Tensor, allowed: Allowed) -> None:
    """Set the score of every token that is not allowed to -inf, in float32 scores [B, V]."""
    n, width = len(allowed.lines), scores.shape[1]
    kernels = _kernels() if scores.is_cpu and scores.is_contiguous() else None
    if kernels is not None:
        bits = np.ascontiguousarray(allowed.bits)
        lines = allowed.lines.ctypes.data
        threads = torch.get_num_threads()
        kernels.mask_rows(
            scores.data_ptr(), n, width, lines, bits.ctypes.data, bits.shape[1], threads
        )
        return
    to = send(allowed.lines, scores.device)
    words = send(allowed.bits, scores.device)
    shifts = torch.arange(32, device=scores.device, dtype=torch.int32)
    keep = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :width].bool()
    scores[to] = scores[to].masked_fill(~keep, -math.inf)


def masked_argmax(scores: Tensor, allowed: Allowed) -> tuple[Tensor, Tensor]:
    """Return the largest allowed score of each of the m lines of scores [B, V], and its index: [m]
    in the scores' dtype, int64 [m]. A line that allows nothing has the maximum -inf."""
    as_is = scores.is_cpu and scores.dtype is torch.float32 and scores.is_contiguous()
    kernels = _kernels() if as_is else None
    n, width = len(allowed.lines), scores.shape[1]
    if kernels is None:
        some = scores[send(allowed.lines, scores.device)].float()
        mask_out(some, Allowed(np.arange(n), allowed.bits))
        values, places = some.max(-1)
        return values.to(scores.dtype), places
    bits = np.ascontiguousarray(allowed.bits)
    values, places = scores.new_empty(n), scores.new_empty(n, dtype=torch.int64)
    kernels.masked_argmax(
        scores.data_ptr(),
        n,
        width,
        allowed.lines.ctypes.data,
        bits.ctypes.data,
        bits.shape[1],
        values.data_ptr(),
        places.data_ptr(),
        torch.get_num_threads(),
    )
    return values, places


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """Load `mask_rows` and `masked_argmax` of argmax.c."""
    try:
        kernels = native.kernels()
    except native.NativeUnavailable:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    rows = (pointer, integer, integer, pointer, pointer, integer)
    kernels.mask_rows.argtypes = (*rows, integer)
    kernels.masked_argmax.argtypes = (*rows, pointer, pointer, integer)
    kernels.mask_rows.restype = kernels.masked_argmax.restype = None
    return kernels

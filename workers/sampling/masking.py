"""Keeping rows to the tokens that their grammars allow."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers import native
from workers.sampling.transfer import send


class Allowed(NamedTuple):
    """Which tokens some of the B rows of a step may say."""

    lines: NDArray[np.int64]
    """[m]: those rows, each by its place among the B."""
    bits: NDArray[np.int32]
    """[m, ceil(V / 32)]: token i is bit i % 32 of word i // 32."""


def mask_out(scores: Tensor, allowed: Allowed) -> None:
    """Put -inf in the place of what is not allowed, in scores [B, V]."""
    lines = send(allowed.lines, scores.device)
    width = scores.shape[1]
    if scores.is_cpu:
        bits = np.unpackbits(allowed.bits.view(np.uint8), axis=1, count=width, bitorder="little")
        kept = torch.from_numpy(bits.view(np.bool_))
        for line, keep in zip(lines.tolist(), kept, strict=True):
            scores[line].masked_fill_(~keep, -math.inf)
        return
    words = send(allowed.bits, scores.device)
    shifts = torch.arange(32, device=scores.device, dtype=torch.int32)
    keep = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :width].bool()
    scores[lines] = scores[lines].masked_fill(~keep, -math.inf)


def allowed_maxima(scores: Tensor, allowed: Allowed) -> tuple[Tensor, Tensor]:
    """The largest allowed score of each of the m lines of scores [B, V], and where it is: [m] in
    the scores' dtype, int64 [m]. A line that allows nothing has the maximum -inf."""
    find = _kernel() if scores.is_cpu and scores.dtype is torch.float32 else None
    if find is None or not scores.is_contiguous():
        some = scores[send(allowed.lines, scores.device)].float()
        mask_out(some, Allowed(np.arange(len(allowed.lines)), allowed.bits))
        values, places = some.max(-1)
        return values.to(scores.dtype), places
    n, width = len(allowed.lines), scores.shape[1]
    bits = np.ascontiguousarray(allowed.bits)
    values, places = scores.new_empty(n), scores.new_empty(n, dtype=torch.int64)
    find(
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
def _kernel() -> Callable[..., None] | None:
    """allowed_maxima of maxima.c."""
    try:
        find = native.kernels().allowed_maxima
    except native.NativeUnavailable:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    find.argtypes = (
        *(pointer, integer, integer, pointer, pointer, integer),
        *(pointer, pointer, integer),
    )
    find.restype = None
    return find

"""Draws of whole rows on a CPU, in one pass over the vocabulary each."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers import native
from workers.sampling.masking import Allowed

DRAWS, REPORTS = 1, 2
"""Bits of `Draws.needs`: the token is drawn; its log-probability is asked for."""


class Draws(NamedTuple):
    """How each of n rows gets its token."""

    needs: NDArray[np.uint8]
    """[n]"""
    temperatures: NDArray[np.float32]
    """[n]; 1 for rows that do not draw."""
    keys: NDArray[np.int32]
    """[n, 2]: the random bits of each draw."""


def draw_rows(
    scores: Tensor, draws: Draws, allowed: Allowed | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the token of each row of scores [n, V], the largest score, and the log-probability
    where it is asked for: int64 [n], float32 [n], float32 [n].

    Tokens are those of `add_gumbel_noise`, of the scores less the largest over the temperature, and
    log-probabilities those of their softmax. Rows with a mask may have what it allows. Returns None
    for scores that are not contiguous float32 on a CPU, and where the kernel is not available.
    """
    as_is = scores.is_cpu and scores.dtype is torch.float32 and scores.is_contiguous()
    run = _kernel() if as_is and scores.numel() else None
    if run is None:
        return None
    n, width = scores.shape
    tokens = scores.new_empty(n, dtype=torch.int64)
    peaks, logprobs = scores.new_empty(n), scores.new_zeros(n)
    masks = np.full(n, -1, np.int64)
    bits = np.zeros((1, 1), np.int32)
    if allowed is not None:
        masks[allowed.lines] = np.arange(len(allowed.lines))
        bits = np.ascontiguousarray(allowed.bits)
    keys = np.ascontiguousarray(draws.keys)
    temperatures = np.ascontiguousarray(draws.temperatures)
    needs = np.ascontiguousarray(draws.needs)
    run(
        scores.data_ptr(),
        n,
        width,
        needs.ctypes.data,
        temperatures.ctypes.data,
        keys.ctypes.data,
        masks.ctypes.data,
        bits.ctypes.data,
        bits.shape[1],
        tokens.data_ptr(),
        peaks.data_ptr(),
        logprobs.data_ptr(),
        torch.get_num_threads(),
    )
    return tokens, peaks, logprobs


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """Load `draw_rows` of draw.c."""
    try:
        run = native.kernels().draw_rows
    except native.NativeUnavailable:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    inputs = (pointer, integer, integer, pointer, pointer, pointer, pointer, pointer, integer)
    run.argtypes = (*inputs, pointer, pointer, pointer, integer)
    run.restype = None
    return run

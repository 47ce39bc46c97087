"""Blocks of every type that GGUF has, without anybody's quantizer: any bytes are some."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import gguf
import numpy as np
import numpy.typing as npt


class _Fields(NamedTuple):
    """Where the float16 numbers of a block are, and what they are multiplied with."""

    scale_at: int
    size: float
    """Root mean square of what is multiplied with the scale, of random bytes."""
    minimum_at: int | None = None
    middle: float = 0.0
    """How many scales the minimum is."""


FIELDS = {
    "Q4_0": _Fields(0, 4.6),
    "Q4_1": _Fields(0, 4.6, 2, -7.5),
    "Q5_0": _Fields(0, 9.2),
    "Q5_1": _Fields(0, 9.2, 2, -15.5),
    "Q8_0": _Fields(0, 74.0),
    "Q2_K": _Fields(80, 9.0, 82, 1.5),
    "Q3_K": _Fields(108, 43.0),
    "Q4_K": _Fields(0, 170.0, 2, 7.5),
    "Q5_K": _Fields(0, 340.0, 2, 15.5),
    "Q6_K": _Fields(208, 1370.0),
}


def random_blocks(kind: str, n: int, k: int, size: float = 1.0) -> npt.NDArray[np.uint8]:
    """Return uint8 [n, bytes] of a weight [n, k] whose root mean square is about `size`, always the
    same."""
    fields = FIELDS[kind]
    inputs, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    draw = np.random.default_rng(zlib.crc32(f"{kind} {n} {k}".encode()))
    blocks = draw.integers(0, 256, (n, k // inputs, n_bytes), dtype=np.uint8)
    scales = draw.uniform(0.7, 1.3, (n, k // inputs, 1)) * size / fields.size
    _put(blocks, fields.scale_at, scales)
    if fields.minimum_at is not None:
        _put(blocks, fields.minimum_at, scales * fields.middle)
    return blocks.reshape(n, -1)


def _put(blocks: npt.NDArray[np.uint8], at: int, numbers: npt.NDArray[np.float64]) -> None:
    blocks[..., at : at + 2] = numbers.astype(np.float16).view(np.uint8)

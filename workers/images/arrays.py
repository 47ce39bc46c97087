"""The file that takes an image's arrays to the workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

ALIGNMENT = 64
"""Offsets are multiples of this many bytes, as kernels like their inputs."""
BLOCK = 1 << 18
"""Bytes that are looked at together. One of zeros is not written: it takes no memory, and is
zeros where it is read."""
ZEROS = bytes(BLOCK)


def write(path: str, arrays: Arrays) -> tuple[list[dict[str, Any]], int]:
    """Write arrays, in C order, to a new file, out of their own memory.

    Returns their fields as in `PixelArray`, and the number of bytes.
    """
    places: list[dict[str, Any]] = []
    end = 0
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for name, array in arrays.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + array.nbytes
            _write_at(file, array.data.cast("B"), start)
            place = {"name": name, "dtype": array.dtype.name, "offset": start}
            places.append({**place, "shape": list(array.shape)})
        os.ftruncate(file, end)
    finally:
        os.close(file)
    return places, end


def _write_at(file: int, data: memoryview, start: int) -> None:
    for offset in range(0, len(data), BLOCK):
        block = data[offset : offset + BLOCK]
        if block[0] == 0 and block.tobytes() == ZEROS[: len(block)]:
            continue
        written = 0
        while written < len(block):
            written += os.pwrite(file, block[written:], start + offset + written)

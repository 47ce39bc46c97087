"""Writing a safetensors file one tensor at a time.

The `safetensors` library writes from a mapping that holds every tensor at once and has no numpy
type for bfloat16. The format is eight bytes of header length (little endian), a JSON header, then
the tensors end to end; written directly, a conversion needs the memory of one tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALIGNMENT = 8
"""The header is padded with spaces so that the first tensor starts on this many bytes."""

CHUNK = 1 << 20
"""Weights rounded at a time, so that it takes little memory beside the tensor."""


SIZES = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1}
"""Bytes of a number, by the names of the format."""


class Entry(NamedTuple):
    """A tensor of a file."""

    dtype: str
    """One of SIZES."""
    shape: tuple[int, ...]


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of `values` as bfloat16, rounded to nearest, ties to even. NaN stays NaN."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        # The carry of the rounding could turn a NaN into infinity or a negative zero.
        rounded[nan] = 0x7FC0
    return rounded


def header_of(
    tensors: Mapping[str, tuple[str, int, tuple[int, ...]]],
) -> tuple[bytes, dict[str, int]]:
    """Return what a file of these tensors begins with, and where in the file each of them begins.

    Each has the format's name of a dtype, the bytes of a number, and a shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    offset = 0
    for name, (dtype, size, shape) in tensors.items():
        begins[name], end = offset, offset + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    begun = len(encoded).to_bytes(8, "little") + encoded
    return begun, {name: len(begun) + at for name, at in begins.items()}


def write_bfloat16(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterator[tuple[str, npt.NDArray[np.float32]]],
) -> None:
    """`write` float32 arrays as bfloat16."""
    write(path, {name: Entry("BF16", shape) for name, shape in shapes.items()}, tensors)


def write(
    path: Path,
    entries: Mapping[str, Entry],
    tensors: Iterator[tuple[str, npt.NDArray[Any]]],
) -> None:
    """Write `tensors` to `path` and flush them to the disk.

    `tensors` yields arrays under the names of `entries`, in that order, of their dtypes, but
    float32 for bfloat16; a `ValueError` is raised for any other name or shape, since the header is
    already written by then.
    """
    expected = iter(entries.items())
    with path.open("wb") as file:
        sized = {name: (one.dtype, SIZES[one.dtype], one.shape) for name, one in entries.items()}
        file.write(header_of(sized)[0])
        for name, values in tensors:
            announced, entry = next(expected, (None, Entry("U8", ())))
            if (name, values.shape) != (announced, entry.shape):
                raise ValueError(f"tensor {name} of shape {values.shape} is not the one expected")
            flat = values.reshape(-1)
            for start in range(0, flat.size, CHUNK):
                some = flat[start : start + CHUNK]
                file.write(to_bfloat16(some).data if entry.dtype == "BF16" else some.data)
        if (missing := next(expected, None)) is not None:
            raise ValueError(f"tensor {missing[0]} was announced and did not come")
        file.flush()
        os.fsync(file.fileno())

"""The arrays of an image, in the file that its preprocessing wrote."""

from __future__ import annotations

import math

import numpy as np
import torch

from tgi_async.wire.messages import Image

DTYPES = frozenset({"bool", "float16", "float32", "float64", "int32", "int64", "uint8"})


def read(image: Image) -> dict[str, torch.Tensor]:
    """Map the arrays of an image into memory, by name: their bytes are read where they are used,
    and stay there though the file is removed.

    Raises ValueError for a file that does not have them.
    """
    try:
        # What is written to it, which nobody does, would not reach the file: torch warns of arrays
        # that cannot be written.
        stored = np.memmap(image.path, np.uint8, "c")
    except (OSError, ValueError) as error:
        raise ValueError(f"the file of an image cannot be read: {error}") from error
    found = {}
    for array in image.arrays:
        if array.dtype not in DTYPES:
            raise ValueError(
                f"{array.name} of an image is of {array.dtype}, allowed are "
                f"{', '.join(sorted(DTYPES))}"
            )
        dtype = np.dtype(array.dtype)
        end = array.offset + math.prod(array.shape) * dtype.itemsize
        if end > len(stored) or array.offset % dtype.itemsize:
            raise ValueError(
                f"{array.name} of an image is at bytes {array.offset} to {end} of a file of "
                f"{len(stored)}"
            )
        part = stored[array.offset : end].view(dtype).reshape(array.shape)
        found[array.name] = torch.from_numpy(part)
    return found

"""Write a safetensors file whose tensors come in any order, each straight to its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from workers.models.checkpoint import DTYPES
from workers.models.safetensors_file import header_of

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class SafetensorsWriter:
    """The header is written at once, so what the file is to hold is known from the start."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        """`entries` in the order in which they lie in the file. Raises OSError."""
        self._entries = dict(entries)
        header, self._begins = header_of(
            {
                name: (NAMES[dtype], dtype.itemsize, shape)
                for name, (dtype, shape) in entries.items()
            }
        )
        self._file = path.open("wb")
        self._file.write(header)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor. Raises ValueError for one that was not announced so, or came before."""
        entry = self._entries.pop(name, None)
        if entry != (tensor.dtype, tuple(tensor.shape)):
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, and the file has {entry} to come"
            )
        self._file.seek(self._begins[name])
        flat = tensor.cpu().contiguous().reshape(-1)
        if flat.numel():
            self._file.write(flat.view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Flush the file to the disk. Raises ValueError where a tensor did not come."""
        if self._entries:
            raise ValueError(f"{next(iter(self._entries))} was announced and did not come")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, whatever it has."""
        self._file.close()

"""The safetensors files of a model folder, mapped into memory.

A file is eight bytes of header length (little endian), a JSON header, then the tensors end to end.
Tensors are handed out as views of the mapping, so that of a tensor only what is looked at is read.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from workers.models.weight_files import LENGTH_BYTES, SINGLE, safetensors_files

MAP_NORESERVE = 0x4000
"""Of Linux; the module `mmap` has no name for it before Python 3.13."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names of the format."""


class BrokenCheckpoint(ValueError):
    """The weights of a folder are not what they should be; the message names the file or tensor."""


class UnknownNumbers(ValueError):
    """A tensor is of a type that no checkpoint is served in."""


class _Entry(NamedTuple):
    """Where a tensor is."""

    file: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


class Checkpoint:
    """Tensors by name. Raises BrokenCheckpoint for files that are missing, cut short or no
    safetensors."""

    def __init__(self, folder: Path) -> None:
        self._maps: list[mmap.mmap] = []
        self._entries: dict[str, _Entry] = {}
        for file in _files(folder):
            self._add(file)

    @property
    def names(self) -> Iterable[str]:
        return self._entries

    def dtype(self, name: str) -> torch.dtype:
        return self._entries[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the mapping: to be read only, and copied where it is kept."""
        entry = self._entries[name]
        count = math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=entry.dtype)
        flat = torch.frombuffer(
            self._maps[entry.file], dtype=entry.dtype, count=count, offset=entry.offset
        )
        return flat.view(entry.shape)

    def leave_out(self, names: Iterable[str]) -> None:
        """Have these tensors no longer: they are no model's."""
        for name in names:
            del self._entries[name]

    def release(self) -> None:
        """Let go of the pages that were read; they are read again if they are looked at again."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def _add(self, path: Path) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise BrokenCheckpoint(f"{path} is missing: download it again") from None
        if size <= LENGTH_BYTES:
            raise BrokenCheckpoint(f"{path} is cut short at {size} bytes: download it again")
        with path.open("rb") as file:
            # Private and writable, for torch warns of buffers that it may not write; nothing is
            # ever written, so that nothing need be reserved for it.
            mapped = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        length = int.from_bytes(mapped[:LENGTH_BYTES], "little")
        begin = LENGTH_BYTES + length
        if begin > size:
            raise BrokenCheckpoint(
                f"{path} is cut short, or no safetensors file: its header would take {length} of "
                f"{size} bytes. Download it again"
            )
        try:
            header: dict[str, Any] = json.loads(mapped[LENGTH_BYTES:begin])
            header.pop("__metadata__", None)
            entries = {
                name: _entry(len(self._maps), begin, found) for name, found in header.items()
            }
        except UnknownNumbers as error:
            raise BrokenCheckpoint(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenCheckpoint(
                f"{path} has a damaged header ({type(error).__name__}: {error}): download it again"
            ) from error
        for name, entry in entries.items():
            end = entry.offset + math.prod(entry.shape) * entry.dtype.itemsize
            if end > size:
                raise BrokenCheckpoint(
                    f"{path} is cut short: it has {size} bytes, and {name} ends at {end}. "
                    "Download it again"
                )
        self._maps.append(mapped)
        self._entries |= entries


def _files(folder: Path) -> list[Path]:
    try:
        names = safetensors_files(folder)
    except ValueError as error:
        raise BrokenCheckpoint(f"{folder} has no whole model: {error}") from error
    if not names:
        raise BrokenCheckpoint(f"{folder} has no {SINGLE}, and no shards of it")
    return [folder / name for name in names]


def _entry(file: int, begin: int, found: dict[str, Any]) -> _Entry:
    """Raises UnknownNumbers, and ValueError, KeyError or TypeError for what is no entry."""
    if found["dtype"] not in DTYPES:
        raise UnknownNumbers(
            f"it has tensors of type {found['dtype']}, which are not served (MLX packs weights in "
            f"U32); served are {', '.join(DTYPES)}"
        )
    dtype, shape = DTYPES[found["dtype"]], tuple(found["shape"])
    start, end = found["data_offsets"]
    if start < 0 or any(n < 0 for n in shape) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{list(shape)} of {dtype} do not take bytes {start} to {end}")
    return _Entry(file, dtype, shape, begin + start)

"""Input buffers at fixed addresses, for CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

DEPTH = 3
"""Steps whose inputs the host may have written before the device has read them: the running one,
the one after it, and the one being written."""
ALIGNMENT = 4
"""Alignment of each part in numbers: 16 bytes, which kernels rely on."""

Int32Array = NDArray[np.int32]


class Layout:
    """Named parts of int32 numbers, one after the other, each aligned to ALIGNMENT; then the rest,
    of any length."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._places: dict[str, slice] = {}
        self.size = 0
        """Size of all parts but the rest."""
        for name, size in sizes.items():
            self._places[name] = slice(self.size, self.size + size)
            self.size += -(-size // ALIGNMENT) * ALIGNMENT

    def views(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of int32 [at least size], and the "rest"."""
        parts = {name: numbers[place] for name, place in self._places.items()}
        return parts | {"rest": numbers[self.size :]}

    def write(
        self,
        numbers: Int32Array,
        parts: Mapping[str, tuple[NDArray[np.integer], int]],
        rest: Int32Array,
    ) -> int:
        """Write each part, padded with the number beside it; return the total number."""
        for name, (values, filling) in parts.items():
            place = numbers[self._places[name]]
            place[: len(values)] = values
            place[len(values) :] = filling
        end = self.size + len(rest)
        numbers[self.size : end] = rest
        return end


class InputBuffers:
    """int32 [capacity] on the device, filled by one copy a step from pinned memory, without waiting
    for the device."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.on_device = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._hosts = [
            torch.zeros(capacity, dtype=torch.int32, pin_memory=pinned) for _ in range(DEPTH)
        ]
        self._copied: list[torch.cuda.Event | None] = [None] * DEPTH
        self._at = 0

    def next(self) -> Int32Array:
        """Return where to write the inputs of the next step; its content is arbitrary. Waits only
        where the device is DEPTH steps behind."""
        copied = self._copied[self._at]
        if copied is not None:
            copied.synchronize()
        return self._hosts[self._at].numpy()

    def send(self, n: int) -> None:
        """Copy the first n of them to the device, after its earlier work."""
        self.on_device[:n].copy_(self._hosts[self._at][:n], non_blocking=True)
        if self.on_device.is_cuda:
            copied = self._copied[self._at] = torch.cuda.Event()
            copied.record()
        self._at = (self._at + 1) % DEPTH

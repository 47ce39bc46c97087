"""Copies between host and device, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor on `device` with the values of `array`; shares its memory on the CPU."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # A copy from pageable memory would wait for the device's queue to drain.
    return tensor.pin_memory().to(device, non_blocking=True)


class Fetched:
    """Tensors being copied to the host, in the order of the device's work: what they were copied
    from may be used again at once."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [_pinned(x) if x.is_cuda else x.clone() for x in tensors]
        self._there: torch.cuda.Event | None = None
        if any(x.is_cuda for x in tensors):
            self._there = torch.cuda.Event()
            self._there.record()

    @property
    def ready(self) -> bool:
        """Whether `tensors` returns at once."""
        return self._there is None or self._there.query()

    def tensors(self) -> list[Tensor]:
        """Return the tensors on the host. Waits for the device, to the point where they were
        fetched."""
        if self._there is not None:
            self._there.synchronize()
        return self._tensors


def _pinned(x: Tensor) -> Tensor:
    # To pageable memory the copy would wait.
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)

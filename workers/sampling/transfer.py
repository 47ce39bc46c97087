"""Host arrays to the device, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on `device` with the values of `array`; shares its memory on the CPU."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # A copy from pageable memory would wait for the device's queue to drain.
    return tensor.pin_memory().to(device, non_blocking=True)

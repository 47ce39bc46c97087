"""Time stamps of the host, or of a device that the host runs ahead of."""

from __future__ import annotations

import time

import torch


class Mark:
    """A point in a step. On a GPU it is reached when the device has done what came before."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._at = time.perf_counter()

    def until(self, later: Mark) -> float:
        """Return the seconds to `later`. Waits for the device to reach it."""
        if self._event is None or later._event is None:
            return later._at - self._at
        later._event.synchronize()
        return float(self._event.elapsed_time(later._event)) / 1e3

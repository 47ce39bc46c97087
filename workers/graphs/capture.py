"""Capture a device's work as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch

Outputs = tuple[torch.Tensor, ...]

CAPTURE_ERRORS = range(900, 909)
"""CUDA's errors for work that cannot be captured. The device stays usable."""


class GraphCapture(Protocol):
    """Captures work over tensors at fixed addresses."""

    def prepare(self, work: Callable[[], Outputs]) -> None:
        """Run `work` once, as kernels are compiled, and libraries allocate memory, when they first
        run. Raises what it raises."""
        ...

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Capture work that was prepared. Return a function that replays it, and its outputs.

        Raises RuntimeError for work that cannot be captured, such as what waits for the device.
        """
        ...


class CudaGraphCapture:
    """CUDA graphs that share their memory, so that the outputs of one last until another runs.
    Capture the one that needs most first."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def prepare(self, work: Callable[[], Outputs]) -> None:
        """See `GraphCapture`."""
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            work()
        before.wait_stream(self._stream)

    def capture(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """See `GraphCapture`."""
        before = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of grammars, may use the device meanwhile.
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = work()
        except torch.AcceleratorError as error:
            self._give_up(before)
            # CUDA reports the broken capture last, and what broke it before.
            cause = error.__context__ or error
            code = getattr(cause, "error_code", CAPTURE_ERRORS.start)
            if not isinstance(cause, RuntimeError) or code not in CAPTURE_ERRORS:
                raise cause from None
            raise RuntimeError(str(cause)) from error
        return graph.replay, outputs

    def _give_up(self, before: torch.cuda.Stream) -> None:
        """Undo what torch leaves of a failed capture: its stream is the current one, and in torch
        2.11 its allocator assumes that the capture goes on."""
        torch.cuda.set_stream(before)
        with suppress(RuntimeError):  # later ones have ended it
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            torch._C._cuda_releasePool(self._stream.device_index, self._pool)

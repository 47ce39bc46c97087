"""What records the work of a device, to be given to it again as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Outputs = tuple[torch.Tensor, ...]


class Recorder(Protocol):
    """Records work over tensors whose places do not change."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Run `work` once, then record it: what runs it again, and where its results are then.

        Raises RuntimeError for work that cannot be recorded, such as what waits for the device.
        """
        ...


class CudaRecorder:
    """CUDA graphs that share their memory, so that the results of one last until another runs.
    Record first what needs most."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """See `Recorder`."""
        # Kernels are compiled, and libraries take their memory, when they first run.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of grammars, may go on with theirs meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = work()
        return graph.replay, outputs

"""What is left of a capture that CUDA refuses, torch's part done by a double that leaves what
torch 2.11 leaves. tests/gpu/test_graphs.py has the real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.graphs.capture import CudaGraphCapture, Outputs

UNSUPPORTED, INVALIDATED, ILLEGAL_ADDRESS = 900, 901, 700
POOL = (0, 7)


def failure(code: int, message: str) -> torch.AcceleratorError:
    error = torch.AcceleratorError(message)
    error.error_code = code  # type: ignore[attr-defined]
    return error


class Cuda:
    """A device with a current stream, whose allocator captures or not."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.default: Any = self._stream()
        self.current = self.default
        self.capturing = False
        self.released = 0
        for name in ("graph", "stream", "set_stream"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "Stream", self._stream)
        patch.setattr(torch.cuda, "CUDAGraph", object)
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: POOL)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self._end, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self._release, raising=False)

    @staticmethod
    def _stream() -> Any:
        return SimpleNamespace(device_index=1, wait_stream=lambda other: None)

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.current, self.capturing = stream, True
        try:
            yield
        finally:
            raise failure(INVALIDATED, "operation failed due to a previous error")

    def _end(self, device: int, pool: Any) -> None:
        assert (device, pool) == (1, POOL)
        if not self.capturing:
            raise RuntimeError("not currently capturing")
        self.capturing = False

    def _release(self, device: int, pool: Any) -> None:
        self.released += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


class Failing:
    """Work that fails when it is captured."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self) -> Outputs:
        raise self._error


def test_work_that_waits_is_refused_with_the_reason_and_nothing_is_left_of_it(cuda: Cuda) -> None:
    work = Failing(failure(UNSUPPORTED, "operation not permitted when stream is capturing"))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing") as caught:
        CudaGraphCapture().capture(work)
    assert not isinstance(caught.value, torch.AcceleratorError)
    assert cuda.current is cuda.default
    assert not cuda.capturing
    assert cuda.released == 1


def test_a_pool_that_torch_has_left_itself_is_not_left_twice(cuda: Cuda) -> None:
    class Ended(Failing):
        def __call__(self) -> Outputs:
            cuda.capturing = False
            return super().__call__()

    with pytest.raises(RuntimeError, match="no matter"):
        CudaGraphCapture().capture(Ended(RuntimeError("no matter")))
    assert cuda.released == 0


class Lost(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [failure(ILLEGAL_ADDRESS, "an illegal memory access was encountered"), Lost()]
)
def test_a_device_or_a_rank_that_is_lost_stays_lost(cuda: Cuda, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        CudaGraphCapture().capture(Failing(error))
    assert caught.value is error

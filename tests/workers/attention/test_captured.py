"""What happens on the host while a decode step is recorded: nothing is read from the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

pytest.importorskip("triton", reason="the package triton is not installed")

from workers.attention import triton_kernels
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.device_batch import SPLIT, DeviceBatch
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.triton_paged import TritonAttention

N, MOST_PARTS = 5, 12


class Launches:
    """In the place of a kernel: takes note of the grid."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return lambda *args, **kwargs: None


# The cache notes its addresses, for kernels that are not called here.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("window", "splits"), [(0, MOST_PARTS), (300, N * (-(-300 // SPLIT) + 1))])
def test_recording_reads_nothing_from_the_device(
    monkeypatch: pytest.MonkeyPatch, window: int, splits: int
) -> None:
    kernels = {name: Launches() for name in ("write", "prefill", "decode", "combine")}
    for name, kernel in kernels.items():
        monkeypatch.setattr(triton_kernels, name, kernel)
    monkeypatch.setattr("workers.attention.triton_paged.multiprocessors", lambda device: 132)
    # Its tensors have no contents: whatever needs one of them raises.
    with FakeTensorMode():
        cache = PagedCache(1, 8, 16, 8, 128, torch.bfloat16, "cuda")
        slots, lengths, starts, parts, tables = (
            torch.zeros(n, dtype=torch.int32, device="cuda") for n in (N, N, N, N + 1, 64)
        )
        batch = DeviceBatch(
            slots,
            lengths,
            starts,
            parts,
            tables,
            tiles=torch.zeros(0, 4, dtype=torch.int32, device="cuda"),
            most_parts=MOST_PARTS,
        )
        attention = TritonAttention(AttentionShape(32, 8, 128, torch.bfloat16))
        context = AttentionContext.captured(cache, N, {attention: batch})
        q, k, v = (
            torch.zeros(1, h, N, 128, dtype=torch.bfloat16, device="cuda") for h in (32, 8, 8)
        )
        out = attention.forward(AttentionLayer(0, 0.1, window), q, k, v, context)
        assert out.shape == (1, N, 32, 128)
        assert out.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            out.tolist()
    assert {name: kernel.grids for name, kernel in kernels.items()} == {
        "write": [(N,)],
        "prefill": [],
        "decode": [(splits, 8)],
        "combine": [(N, 32)],
    }

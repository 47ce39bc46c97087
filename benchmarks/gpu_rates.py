"""A device's maximum rates: the lower bounds of all times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.gpu_report import Report

READ_BYTES = 4 << 30
CPU_BYTES, CPU_SIDE = 1 << 24, 256
"""On a CPU only the code is tried."""
COLUMNS = {"copy GB/s": ".0f", "read GB/s": ".0f", "product TFLOP/s": ".2f"}


class Rates(NamedTuple):
    copy: float
    """Bytes a second, read and written ones counted."""
    read: float
    """Bytes a second of a sum in float32, which only reads."""
    product: float
    """Operations a second of a product of matrices in bfloat16."""


def measure(device: str) -> Rates:
    """Measure the rates. Its memory is freed afterwards."""
    if device == "cpu":
        return _on_cpu()
    from benchmarks.gpu_attention import rates, seconds

    copied, multiplied = rates()
    memory = torch.ones(READ_BYTES // 4, device=device)
    read = seconds(memory.sum)
    del memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return Rates(copied, READ_BYTES / read, multiplied)


def _on_cpu() -> Rates:
    memory = torch.ones(CPU_BYTES // 4)
    other = torch.empty_like(memory)
    side = torch.ones(CPU_SIDE, CPU_SIDE, dtype=torch.bfloat16)
    copy = _seconds(lambda: other.copy_(memory))
    product = _seconds(lambda: side @ side)
    return Rates(2 * CPU_BYTES / copy, CPU_BYTES / _seconds(memory.sum), 2 * CPU_SIDE**3 / product)


def _seconds(work: Callable[[], object]) -> float:
    """Return the time of the fastest of some passes, by the host's clock."""
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def run(device: str, report: Report) -> Rates:
    """Measure and show."""
    rates = measure(device)
    table = report.table("rates", COLUMNS)
    found = rates.copy / 1e9, rates.read / 1e9, rates.product / 1e12
    table.add(dict(zip(COLUMNS, found, strict=True)))
    return rates

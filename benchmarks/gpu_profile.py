"""A device's work by name, from torch's profiler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Span(NamedTuple):
    """One operation. Times in seconds."""

    name: str
    begin: float
    end: float


class Profile:
    """The profile of some steps; figures are of one step. Complete when `profiled` has ended."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.spans: list[Span] = []

    @property
    def kernels(self) -> float:
        """The number of kernels, copies and fills included."""
        return len(self.spans) / self._steps

    @property
    def busy(self) -> float:
        """Seconds in which something runs."""
        return covered(self.spans) / self._steps

    def longest(self, n: int) -> dict[str, float]:
        """Return the milliseconds of the longest kernels, those of one name together."""
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.name] = sums.get(span.name, 0.0) + span.end - span.begin
        most = sorted(sums, key=sums.__getitem__, reverse=True)[:n]
        return {name: sums[name] / self._steps * 1e3 for name in most}


def covered(spans: Iterable[Span]) -> float:
    """Return the seconds in which at least one of them runs."""
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda one: one.begin):
        total += max(0.0, span.end - max(span.begin, reached))
        reached = max(reached, span.end)
    return total


@contextmanager
def profiled(on_gpu: bool, steps: int) -> Iterator[Profile]:
    """Watch the GPU, or torch's operators where there is none, during so many steps."""
    found = Profile(steps)
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    kind = "CUDA" if on_gpu else "CPU"
    with profile(activities=[activity]) as watched:
        yield found
        if on_gpu:
            torch.cuda.synchronize()
    for event in watched.events():
        if event.device_type.name == kind:
            where = event.time_range
            found.spans.append(Span(event.name, where.start / 1e6, where.end / 1e6))

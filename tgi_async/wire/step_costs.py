"""What a step costs by its positions, as measured at warm-up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from tgi_async.wire.messages import StepCost


class StepCosts:
    """Seconds of a step by its positions: linear between the measured ones, and beyond them.

    Raises ValueError for fewer than two measurements, or positions that do not ascend.
    """

    def __init__(self, measured: Sequence[StepCost]) -> None:
        self._positions = [one.n_tokens for one in measured]
        if len(measured) < 2 or sorted(set(self._positions)) != self._positions:
            raise ValueError(f"a cost needs two or more ascending positions, got {measured}")
        seconds: list[float] = []
        for one in measured:
            # A larger step that took less time did so by chance.
            seconds.append(max(one.seconds, seconds[-1] if seconds else 0.0))
        self._seconds = seconds

    def seconds(self, n: int) -> float:
        """Return what a step of `n` positions takes."""
        at = min(max(1, bisect_right(self._positions, n)), len(self._positions) - 1)
        left, right = self._positions[at - 1], self._positions[at]
        low, high = self._seconds[at - 1], self._seconds[at]
        return max(0.0, low + (high - low) * (n - left) / (right - left))

    def least_slope(self, start: int, end: int) -> float:
        """Return the least seconds that one more position takes between these."""
        last = len(self._positions) - 2
        first = min(max(0, bisect_right(self._positions, start) - 1), last)
        return min(
            (self._seconds[at + 1] - self._seconds[at])
            / (self._positions[at + 1] - self._positions[at])
            for at in range(first, last + 1)
            if at == first or self._positions[at] < end
        )

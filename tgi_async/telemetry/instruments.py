"""Counters, gauges and histograms, and the Prometheus text format.

TGI's dashboards ask for counters without the `_total` ending that prometheus-client always adds,
and for histograms of up to 1024 buckets, through which that library searches linearly at each
observation. Everything here runs on the event loop's thread, so nothing is locked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """Counts up, for each value of one label, or in total when `label` is None.

    The `known` values of the label are there from the start, at 0, so that a rate sees the first.
    """

    def __init__(
        self, name: str, documentation: str, label: str | None = None, known: Iterable[str] = ()
    ) -> None:
        self._name = name
        self._head = head(name, documentation, "counter")
        self._label = label
        self._values: dict[str, int] = dict.fromkeys(known if label else ("",), 0)

    def add(self, n: int = 1, label: str = "") -> None:
        """Count `n` more, under this value of the label."""
        self._values[label] = self._values.get(label, 0) + n

    def lines(self) -> Iterable[str]:
        """Return the lines of the text format."""
        yield self._head
        for label, value in self._values.items():
            yield f"{self._name}{_braces(self._label, label)} {value}\n"


class Histogram:
    """Counts observations in buckets that include their upper bounds.

    `bounds` ascend; the bucket without a bound is added. One histogram for each value of `label`.
    """

    def __init__(
        self, name: str, documentation: str, bounds: Sequence[float], label: str | None = None
    ) -> None:
        self._name = name
        self._head = head(name, documentation, "histogram")
        self._bounds = list(bounds)
        self._bound_names = [*(f"{bound:.12g}" for bound in bounds), "+Inf"]
        self._label = label
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        if label is None:
            self._begin("")

    def observe(self, value: float, label: str = "", n: int = 1) -> None:
        """Record `n` observations of `value`, under this value of the label."""
        if label not in self._counts:
            self._begin(label)
        self._counts[label][bisect_left(self._bounds, value)] += n
        self._sums[label] += value * n

    def lines(self) -> Iterable[str]:
        """Return the lines of the text format."""
        yield self._head
        for label, counts in self._counts.items():
            pair = f'{self._label}="{label}",' if self._label else ""
            for bound, count in zip(self._bound_names, accumulate(counts), strict=True):
                yield f'{self._name}_bucket{{{pair}le="{bound}"}} {count}\n'
            braces = _braces(self._label, label)
            yield f"{self._name}_sum{braces} {self._sums[label]}\n"
            yield f"{self._name}_count{braces} {sum(counts)}\n"

    def _begin(self, label: str) -> None:
        self._counts[label] = [0] * (len(self._bounds) + 1)
        self._sums[label] = 0.0


def gauge(name: str, documentation: str, value: float) -> str:
    """Return the lines of a gauge with this value, in the text format."""
    return f"{head(name, documentation, 'gauge')}{name} {value}\n"


def head(name: str, documentation: str, kind: str) -> str:
    """Return the two lines that describe a metric, in the text format."""
    return f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n"


def _braces(label: str | None, value: str) -> str:
    return f'{{{label}="{value}"}}' if label else ""

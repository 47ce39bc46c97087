"""A plot of a sweep: throughput and inter-token latency against the number of streams."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load_client import LoadError

FORMATS = (".svg", ".png")
CAPTION_CHARS = 130
"""Characters in a line of the caption."""


class Point(NamedTuple):
    """One server's results at one number of streams. Times in milliseconds."""

    streams: int
    tokens_per_s: float
    itl_p50: float
    itl_p99: float


def check_plot(file: Path) -> None:
    """Raise LoadError where `file` could not be drawn, before the sweep begins."""
    if file.suffix not in FORMATS:
        raise LoadError(f"--plot {file}: the name ends in none of {', '.join(FORMATS)}")
    if not file.resolve().parent.is_dir():
        raise LoadError(f"--plot {file}: there is no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise LoadError('--plot needs matplotlib: pip install "tgi-async[benchmarks]"')


def curves_of(kept: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Return each server's points in ascending order of streams, from the figures of `--json`.

    A point with nothing but failures is left out.

    Raises:
        LoadError: there is no sweep in it.
    """
    curves: dict[str, list[Point]] = {}
    try:
        for streams, point in sorted(kept["sweep"].items(), key=lambda item: int(item[0])):
            for name, summary in point["summaries"].items():
                curve = curves.setdefault(name, [])
                itl_p50, itl_p99 = summary["itl_p50_s"], summary["itl_p99_s"]
                if itl_p50 is not None:
                    rate = summary["output_tokens_per_s"]
                    curve.append(Point(int(streams), rate, itl_p50 * 1e3, itl_p99 * 1e3))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LoadError(f"this is nothing that --json has kept: {error!r}") from error
    if not any(curves.values()):
        raise LoadError("there is no sweep in it: run with --streams")
    return curves


def draw(kept: Mapping[str, Any], file: Path) -> None:
    """Draw the sweep in `kept`, the figures of `--json`, into `file`.

    Raises:
        LoadError: there is no sweep in it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    curves = curves_of(kept)
    figure = Figure(figsize=(11, 5), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for number, (name, points) in enumerate(curves.items()):
        streams = [point.streams for point in points]
        color = f"C{number}"
        rates = [point.tokens_per_s for point in points]
        throughput.plot(streams, rates, "o-", color=color, label=name)
        for quantity, style in (("p50", "o-"), ("p99", "^--")):
            times = [getattr(point, f"itl_{quantity}") for point in points]
            latency.plot(streams, times, style, color=color, label=f"{name} {quantity}")
    throughput.set(title="Throughput", ylabel="output tokens / s", ylim=(0, None))
    latency.set(title="Inter-token latency", ylabel="between two events of a stream, ms")
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    every = sorted({point.streams for points in curves.values() for point in points})
    for axes in (throughput, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [str(streams) for streams in every])
        axes.set_xlabel("streams at a time")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    caption = f"{kept.get('command', 'unknown command')}\n{kept.get('date', 'unknown date')}"
    lines = [one for line in caption.splitlines() for one in textwrap.wrap(line, CAPTION_CHARS)]
    figure.supxlabel("\n".join(lines), fontsize="x-small", family="monospace")
    figure.savefig(file, dpi=150)

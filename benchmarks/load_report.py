"""Figures of counted rounds, and ratios between servers."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from benchmarks.load_rounds import Round
from benchmarks.load_works import Work, describe


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile; None of no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def summarize(rounds: Sequence[Round]) -> dict[str, float | None]:
    """Rates and times are medians of the rounds; latencies are pooled over their requests."""
    ttft = [value for r in rounds for value in r.ttft]
    gaps = [value for r in rounds for value in r.gaps]
    per_token = [value for r in rounds for value in r.per_token]
    memory = [r.memory for r in rounds if r.memory is not None]
    rates = [r.output_tokens / r.elapsed for r in rounds]
    return {
        "requests": sum(r.requests for r in rounds),
        "failures": sum(len(r.failures) for r in rounds),
        "unverified": sum(r.unverified for r in rounds),
        "total_s": statistics.median(r.elapsed for r in rounds),
        "output_tokens_per_s": statistics.median(rates),
        "output_tokens_per_s_min": min(rates),
        "output_tokens_per_s_max": max(rates),
        "prompt_tokens_per_s": statistics.median(r.prompt_tokens / r.elapsed for r in rounds),
        "requests_per_s": statistics.median(len(r.ttft) / r.elapsed for r in rounds),
        "ttft_p50_s": percentile(ttft, 50),
        "ttft_p99_s": percentile(ttft, 99),
        "itl_p50_s": percentile(gaps, 50),
        "itl_p99_s": percentile(gaps, 99),
        "tpot_p50_s": percentile(per_token, 50),
        "events_per_token": sum(r.events for r in rounds)
        / max(1, sum(r.output_tokens for r in rounds)),
        "client_cpu_share": sum(r.client_cpu for r in rounds) / sum(r.elapsed for r in rounds),
        "memory_bytes": max(memory) if memory else None,
    }


COLUMNS = (
    ("requests", "requests", 1, 0),
    ("failed", "failures", 1, 0),
    ("total s", "total_s", 1, 2),
    ("out tok/s", "output_tokens_per_s", 1, 1),
    ("min", "output_tokens_per_s_min", 1, 1),
    ("max", "output_tokens_per_s_max", 1, 1),
    ("in tok/s", "prompt_tokens_per_s", 1, 0),
    ("req/s", "requests_per_s", 1, 2),
    ("TTFT p50 ms", "ttft_p50_s", 1e3, 1),
    ("p99", "ttft_p99_s", 1e3, 1),
    ("ITL p50 ms", "itl_p50_s", 1e3, 1),
    ("p99", "itl_p99_s", 1e3, 1),
    ("TPOT p50 ms", "tpot_p50_s", 1e3, 1),
    ("events/tok", "events_per_token", 1, 2),
    ("client CPU %", "client_cpu_share", 100, 1),
    ("PSS MB", "memory_bytes", 1e-6, 0),
)
RATIOS = (
    "output_tokens_per_s",
    "prompt_tokens_per_s",
    "requests_per_s",
    "total_s",
    "ttft_p50_s",
    "itl_p50_s",
    "itl_p99_s",
    "tpot_p50_s",
)
"""The compared figures: the first server's summary divided by each other's."""

Summary = dict[str, float | None]


def compare(summaries: dict[str, Summary]) -> dict[str, Summary]:
    """Return {other server: {quantity: first server / other server}}; None where either is absent
    or 0."""
    (_, first), *others = summaries.items()

    def ratio(ours: float | None, theirs: float | None) -> float | None:
        return ours / theirs if ours and theirs else None

    return {name: {key: ratio(first[key], other[key]) for key in RATIOS} for name, other in others}


def show(
    title: str, work: Work, summaries: dict[str, Summary], failures: dict[str, Counter[str]]
) -> None:
    """Print one work's table, ratios and reasons of failure."""
    shown = [c for c in COLUMNS if any(s[c[1]] is not None for s in summaries.values())]
    rows = [["server", *(heading for heading, *_ in shown)]]
    for name, summary in summaries.items():
        cells = [(summary[key], scale, digits) for _, key, scale, digits in shown]
        rows.append([name, *("-" if v is None else f"{v * s:.{d}f}" for v, s, d in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}: {describe(work)}")
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    first = next(iter(summaries))
    for other, ratios in compare(summaries).items():
        text = ", ".join(f"{key} {value:.3f}" for key, value in ratios.items() if value is not None)
        print(f"{first} / {other}: {text or 'nothing to compare'}")
        if summaries[first]["failures"] or summaries[other]["failures"]:
            print("(requests failed: the work was not the same, so these ratios prove nothing)")
    for name, reasons in failures.items():
        for reason, count in reasons.most_common(3):
            print(f"{name}: {count} failed: {reason}")
        if summaries[name]["unverified"]:
            print(f"{name}: no usage from the server: its tokens are those asked for, unverified")

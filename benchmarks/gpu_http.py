"""Streams through the real server: the load of `load.py` on a model of a known shape.

Every request has a prompt of its own, of as many tokens as words. The first round of each number of
streams warms up. `floor` is what a decode step of so many rows takes at least, at the length that
their texts have on average; `share` is that of the time between two tokens of a stream, in which
the server also reads prompts of others, writes and sends.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_rates import Rates
from benchmarks.gpu_report import Report
from benchmarks.load import measure
from benchmarks.load_client import LoadError, Server
from benchmarks.load_works import Work
from benchmarks.roofline import Sizes, need
from benchmarks.served import serving
from workers.models.description import read_config, sizes_of

START_SECONDS = 240.0
ROUND_SECONDS = 120.0
LOG_LINES = 30
COLUMNS = {
    "streams": "d",
    "tok/s": ".0f",
    "req/s": ".1f",
    "TTFT p50 ms": ".1f",
    "TPOT p50 ms": ".3f",
    "ITL p99 ms": ".2f",
    "floor ms": ".3f",
    "share": ".1%",
    "failed": "d",
}


def work_of(streams: int, prompt_tokens: int, output_tokens: int) -> Work:
    """Return a work with two requests a stream, so that the last of them join a running batch."""
    return Work(max(4, 2 * streams), streams, output_tokens, prompt_tokens)


def run(
    folder: Path, works: list[Work], rounds: int, flags: list[str], rates: Rates, report: Report
) -> None:
    """Run the part. Raises RuntimeError where the server does not start, or all requests of a round
    fail."""
    sizes = Sizes.of(folder)
    config = sizes_of(read_config(folder, trust_remote_code=False))
    most = max(work.concurrency for work in works)
    flags = ["--max-concurrent-requests", f"{most}", *flags]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        log = Path(kept, "log")
        with serving(folder, log, flags, START_SECONDS) as served:
            report.note(f"the server was ready in {served.ready_seconds:.1f} s")
            for work in works:
                floor = need(config, sizes, work.concurrency, 1, length_of(work)).bytes / rates.copy
                try:
                    found.append(_row(work, _measure(served.port, work, rounds), floor))
                except LoadError as error:
                    end = "\n".join(log.read_text().splitlines()[-LOG_LINES:])
                    raise RuntimeError(f"{error}\n{end}") from error
                report.found["http"] = found
                report.save()
    table = report.table("http", COLUMNS)
    for row in found:
        table.add(row)


def length_of(work: Work) -> float:
    """Return the mean length of a text over its decode steps."""
    return work.prompt_words + work.output_tokens / 2


def _measure(port: int, work: Work, rounds: int) -> dict[str, float | None]:
    """Return the summary of some rounds, which are shown. Raises LoadError."""
    server = Server("ours", "127.0.0.1", port, "/v1/completions", None, None)
    options = Namespace(rounds=rounds, seed=f"{random.randrange(2**32):08x}", timeout=ROUND_SECONDS)
    warm_up = replace(work, requests=work.concurrency)
    name = f"{work.concurrency} streams"
    measured = asyncio.run(measure([server], name, work, warm_up, options))
    summary: dict[str, float | None] = measured["summaries"]["ours"]
    return summary


def _row(work: Work, summary: dict[str, float | None], floor: float) -> dict[str, Any]:
    per_token = summary["tpot_p50_s"]
    ms = {key: 1e3 * value for key, value in summary.items() if value is not None}
    return {
        "streams": work.concurrency,
        "tok/s": summary["output_tokens_per_s"],
        "req/s": summary["requests_per_s"],
        "TTFT p50 ms": ms.get("ttft_p50_s"),
        "TPOT p50 ms": ms.get("tpot_p50_s"),
        "ITL p99 ms": ms.get("itl_p99_s"),
        "floor ms": floor * 1e3,
        "share": floor / per_token if per_token else None,
        "failed": summary["failures"],
        "work": asdict(work),
    }

"""The parts of `benchmarks.gpu`, each for a process of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from benchmarks import gpu_http, gpu_rates, gpu_transformers
from benchmarks.gpu_prefill import Prefills, Prompts
from benchmarks.gpu_report import Report
from benchmarks.gpu_step import Case, Decodes

ROUND_SECONDS = 100.0
"""Most seconds of a round with transformers."""


def measure(part: str, folder: Path, given: argparse.Namespace) -> None:
    """Run a part on the model in `folder`: prints its tables and writes them to `given.json`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = Report(given.json)
    report.found["machine"] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    works = [
        gpu_http.work_of(streams, given.prompt_tokens, given.output_tokens)
        for streams in given.streams
    ]
    if part == "transformers":
        gpu_transformers.run(folder, works, device, ROUND_SECONDS, report)
        return
    rates = gpu_rates.run(device, report)
    if part == "step":
        cases = [Case(rows, context) for context in given.contexts for rows in given.rows]
        Decodes(folder, cases, given.passes, rates, report, given.attention).run()
    elif part == "prefill":
        prompts = [Prompts(*pair) for pair in given.prompts]
        passes = max(1, given.passes // 6)
        Prefills(folder, prompts, passes, rates, report, given.attention).run()
    elif part == "http":
        flags = ["--attention", given.attention, *given.server_flags]
        gpu_http.run(folder, works, given.rounds, flags, rates, report)

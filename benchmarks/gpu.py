"""All GPU measurements in one command with a time limit.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --parts step,prefill --rows 1,64 --contexts 1000
    python -m benchmarks.gpu --device cpu --shape tiny --rows 1,2 --contexts 20,60 --prompts 2x40 \\
        --streams 1,4 --prompt-tokens 20 --output-tokens 8

| part | |
|---|---|
| `rates` | what the device does at most: a copy, a read, a product of matrices |
| `step` | decode steps of the worker, without HTTP, against the bytes that they read |
| `prefill` | prompts through the worker, against the rate of products |
| `http` | streams through the real server |
| `transformers` | the same streams through transformers' continuous batching |

Nothing is fetched: the model is a shape with made-up weights (`made_model`), written once. Each
part is a process of its own, which starts with the GPU's memory free, measures the rates that it is
compared with itself, and is ended where it takes too long; what it has found by then is kept. On a
CPU all of it runs, and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

LIMITS = {"rates": 60, "step": 240, "prefill": 150, "http": 240, "transformers": 420}
"""The parts, and the time limit of each in seconds."""
MADE_IN = Path(tempfile.gettempdir(), "tgi-async-made")
MAKING_SECONDS = 240
LEAST_SECONDS = 10
"""Least seconds left to start a part."""


def numbers(text: str) -> list[int]:
    found = [int(number) for number in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def parts_of(text: str) -> list[str]:
    found = text.split(",")
    if unknown := set(found) - LIMITS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: parts are {', '.join(LIMITS)}")
    return [part for part in LIMITS if part in found]


def prompts(text: str) -> list[tuple[int, int]]:
    """Parse `1x512,8x512`: how many prompts at once, and tokens of each."""
    pairs = [pair.partition("x") for pair in text.split(",")]
    return [(numbers(rows)[0], numbers(tokens)[0]) for rows, _, tokens in pairs]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a GPU does, and what it does here.")
    add = parser.add_argument
    add("--parts", type=parts_of, default=list(LIMITS), help=f"of {','.join(LIMITS)}; default: all")
    add("--shape", default="llama-8b", help="of the model that is made (benchmarks.made_model)")
    add("--made-in", type=Path, default=MADE_IN, help="where it is kept; default: %(default)s")
    add("--model", type=Path, help="the folder of another model")
    add("--device", choices=("auto", "cpu"), default="auto")
    add("--seconds", type=float, default=570.0, help="for all parts together")
    add("--json", type=Path, metavar="FILE", help="writes every figure here")
    add("--rows", type=numbers, default=[1, 4, 16, 64, 256], help="of a decode step")
    add("--contexts", type=numbers, default=[200, 1000, 8000], help="of these rows, in tokens")
    add("--passes", type=int, default=60, help="steps timed; a sixth as many prefills")
    add("--prompts", type=prompts, default=prompts("1x512,8x512,1x2048,1x8192"))
    add("--streams", type=numbers, default=[1, 16, 64, 256])
    add("--prompt-tokens", type=int, default=256, help="of a stream's request")
    add("--output-tokens", type=int, default=256, help="of a stream's request")
    add("--rounds", type=int, default=1, help="of each number of streams, after a warm-up")
    add("--attention", default="auto", help="kernels of attention, as the server's flag has them")
    add("--server-flags", type=shlex.split, default=[], help="more of `tgi-async serve`")
    add("--here", choices=LIMITS, help="this part alone, in this process, until it ends")
    given = parser.parse_args(arguments)
    if given.output_tokens < 2 or given.prompt_tokens < 1 or given.passes < 1 or given.rounds < 1:
        parser.error("--output-tokens is at least 2, --prompt-tokens, --passes and --rounds 1")
    if given.model is not None and not (given.model / "config.json").is_file():
        parser.error(f"--model {given.model} is no model's folder")
    return given


def child(command: list[str], device: str, seconds: float) -> str | None:
    """Run a command with all its children. Return what went wrong, if anything did."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"exit status {status}" if status else None


def run_parts(given: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Return each part's results, and how it failed if it did."""
    parts: dict[str, Any] = {}
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as kept:
        for part in given.parts:
            limit = min(LIMITS[part], end - time.monotonic())
            if limit < LEAST_SECONDS:
                parts[part] = {"failed": "no time was left"}
                print(f"\n{part}: no time was left", flush=True)
                continue
            print(f"\n== {part}", flush=True)
            found = Path(kept, f"{part}.json")
            began = time.monotonic()
            command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
            failed = child([*command, "--here", part, "--json", str(found)], given.device, limit)
            parts[part] = json.loads(found.read_bytes()) if found.exists() else {}
            parts[part]["seconds"] = time.monotonic() - began
            if failed is not None:
                parts[part]["failed"] = failed
            print(f"{part}: {failed or 'done'}, {parts[part]['seconds']:.0f} s", flush=True)
    return parts


def ratios(parts: dict[str, Any]) -> dict[int, float]:
    """Return tokens a second through the server over the better of transformers' ways, by streams,
    for complete works."""
    theirs: dict[int, float] = {}
    for row in parts.get("transformers", {}).get("transformers", []):
        theirs[row["streams"]] = max(row["tok/s"], theirs.get(row["streams"], 0.0))
    rows = parts.get("http", {}).get("http", [])
    ours = {row["streams"]: row["tok/s"] for row in rows if not row["failed"]}
    return {streams: ours[streams] / theirs[streams] for streams in ours.keys() & theirs.keys()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit status: 0, or 1 when a part failed or the model could not be
    made."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parse(arguments)
    folder = given.model or given.made_in / given.shape
    if given.here is not None:
        from benchmarks.gpu_parts import measure

        measure(given.here, folder, given)
        return 0
    if given.model is None:
        command = [sys.executable, "-m", "benchmarks.made_model", "--shape", given.shape]
        failed = child([*command, "--out", str(folder)], given.device, MAKING_SECONDS)
        if failed is not None:
            print(f"the model was not made: {failed}", file=sys.stderr)
            return 1
    parts = run_parts(given, arguments)
    compared = ratios(parts)
    for streams, ratio in sorted(compared.items()):
        print(f"{streams} streams: {ratio:.2f} times transformers' continuous batching")
    if given.json is not None:
        kept = {
            "command": shlex.join(["python", "-m", "benchmarks.gpu", *arguments]),
            "date": date.today().isoformat(),
            "parts": parts,
            "ratios": compared,
        }
        given.json.write_text(json.dumps(kept, indent=1))
    return int(any("failed" in found for found in parts.values()))


if __name__ == "__main__":
    sys.exit(main())

"""The Triton kernels on a machine without a GPU: run by Triton's interpreter, and compiled for GPUs
that are not there. Each in a process of its own: whether Triton interprets is settled when it is
imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SHARED_MEMORY = {80: 163, 86: 99, 90: 227, 120: 99}
"""KiB that a program can have, by compute capability: table 30 of the CUDA programming guide."""


def version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


try:
    TRITON = version("triton")
except metadata.PackageNotFoundError:
    pytest.skip("the package triton is not installed", allow_module_level=True)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environment
    command = (sys.executable, *arguments)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.skipif(
    TRITON < (3, 7) and version("numpy") >= (2, 4),
    reason=f"the interpreter of Triton {TRITON} does not run with numpy {np.__version__}",
)
def test_interpreted_they_are_paged_attention() -> None:
    done = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"), TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.parametrize(
    ("capability", "dtype", "n_heads", "n_kv_heads", "head_dim", "window", "softcap", "more"),
    [
        (90, "bfloat16", 32, 8, 128, 0, 0.0, []),
        (90, "bfloat16", 64, 8, 64, 128, 0.0, ["extras"]),
        (80, "float16", 14, 2, 80, 0, 0.0, []),
        (86, "bfloat16", 128, 1, 128, 0, 0.0, []),
        (86, "float32", 16, 1, 512, 0, 0.0, []),
        (120, "bfloat16", 16, 8, 256, 4096, 50.0, []),
    ],
)
def test_they_compile_and_fit_a_gpu_and_spill_no_registers(
    tmp_path: Path,
    capability: int,
    dtype: str,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    window: int,
    softcap: float,
    more: list[str],
) -> None:
    arguments = (capability, dtype, n_heads, n_kv_heads, head_dim, window, softcap, *more)
    done = python(
        *("-m", "tests.workers.triton_compile", *map(str, arguments)),
        TRITON_CACHE_DIR=str(tmp_path),
        TRITON_INTERPRET="0",
    )
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in built] == ["write", "prefill", "decode", "combine"]
    for name, shared, spilled in built:
        assert shared <= SHARED_MEMORY[capability] * 1024, name
        # Exact products in float32 take more registers than there are: slow, and right.
        assert dtype == "float32" or spilled == 0, name

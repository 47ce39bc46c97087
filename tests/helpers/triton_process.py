"""Processes in which Triton interprets, or compiles for GPUs that are not there: which of the two
it does is settled when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that a program can have, by compute capability: table 30 of the CUDA programming guide."""


TENSOR_MEMORY = 512
"""Columns of tensor memory that a program can have, in compute capability 10."""
SPILLED = 32
"""Bytes that the assembler may put into memory on purpose, so that more programs run at once."""


class Build(NamedTuple):
    """What a compiled kernel takes of a GPU."""

    name: str
    shared: int
    """Bytes of a program."""
    spilled: int
    """Bytes of a thread's registers that did not fit."""
    registers: int
    """Of a thread."""
    tensor_memory: int
    """Columns of a program."""

    def expect_fitting(self, capability: int, spilled: int = SPILLED) -> None:
        """Fails the test where the kernel does not run on such a GPU, or keeps more of its
        registers in memory."""
        assert self.shared <= SHARED_MEMORY[capability] * 1024, self
        assert self.spilled <= spilled, self
        assert self.tensor_memory <= TENSOR_MEMORY, self


def version(package: str) -> tuple[int, ...]:
    """Major and minor; () where the package is not installed."""
    try:
        return tuple(int(part) for part in metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return ()


NEEDED = pytest.mark.skipif(not version("triton"), reason="the package triton is not installed")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environment
    command = (sys.executable, *arguments)
    # The time is pytest's to limit: the long tier has more of it.
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def compile(folder: Path, part: str, *arguments: object) -> list[Build]:
    """What `python -m tests.helpers.triton_compile_{part} ...` compiled; `folder` is for what comes
    of it."""
    module = f"tests.helpers.triton_compile_{part}"
    done = python(
        "-m", module, *map(str, arguments), TRITON_CACHE_DIR=str(folder), TRITON_INTERPRET="0"
    )
    assert done.returncode == 0, done.stderr
    return [Build(*json.loads(line)) for line in done.stdout.splitlines()]

"""The tests of GPU kernels on a machine without a GPU: run by Triton's interpreter, in a process of
its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.triton_process import NEEDED, ROOT, python, version

pytestmark = [
    NEEDED,
    pytest.mark.skipif(
        version("triton") < (3, 7) and version("numpy") >= (2, 4),
        reason=f"the interpreter of Triton {version('triton')} does not run with numpy "
        f"{np.__version__}",
    ),
]

FILES = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
SLOW = ("test_graphs", "test_images", "test_sampling")
"""A minute each; graphs/test_decode.py and sampling/test_triton.py try parts of the same, and
families/test_vision_parity.py has images on a CPU."""


def interpreted(tier: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", tier, *map(str, files))
    return python(*command, TRITON_INTERPRET="1")


@pytest.mark.timeout(600)
def test_interpreted_they_pass() -> None:
    done = interpreted("not full", *(file for file in FILES if file.stem not in SLOW))
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_interpreted_all_of_a_file_passes(file: Path) -> None:
    done = interpreted("full or not full", file)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout

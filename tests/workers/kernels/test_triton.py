"""The tests of GPU kernels on a machine without a GPU: run by Triton's interpreter, each file in a
process of its own."""

from __future__ import annotations

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
SLOW = ("test_graphs", "test_sampling")
"""A minute each; graphs/test_decode.py and sampling/test_triton.py try parts of the same."""


@pytest.mark.parametrize(
    ("file", "tier"),
    [
        pytest.param(
            file,
            tier,
            id=f"{file.stem}-{tier}",
            marks=[pytest.mark.full] if tier == "full" or file.stem in SLOW else [],
        )
        for file in FILES
        for tier in ("not full", "full")
    ],
)
def test_interpreted_they_pass(file: Path, tier: str) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", tier, str(file))
    done = python(*command, TRITON_INTERPRET="1")
    if tier == "full" and done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        return
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout

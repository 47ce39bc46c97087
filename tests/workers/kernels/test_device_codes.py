"""Products with codes on GPUs that are not there: what their kernels take of one.
tests/gpu/test_codes.py has their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.triton_process import NEEDED, compile

pytestmark = NEEDED

MOST_SPILLED = 96
"""Bytes: 64 rows with four scales for a block take 275 registers on compute capability 12.0."""
Case = tuple[int, str, str, int, str]
QUICK: list[Case] = [(90, "bfloat16", "4 with zeros", 128, "1,16")]
MORE: list[Case] = [
    (capability, dtype, kind, group, "1,4,5,32,64,129")
    for capability in (80, 89, 90, 100, 120)
    for dtype, kind, group in (
        ("bfloat16", "4", 32),
        ("float16", "4 with zeros", 128),
        ("bfloat16", "uneven", 64),
        ("bfloat16", "8 with zeros", 64),
        ("float16", "8", 0),
        ("bfloat16", "e4m3", 0),
        ("bfloat16", "e4m3", 128),
    )
]
"""Every architecture has every kind of code and of group."""


@pytest.mark.parametrize(
    ("capability", "dtype", "kind", "group", "rows"),
    [*QUICK, *(pytest.param(*one, marks=pytest.mark.full) for one in MORE)],
)
def test_the_kernels_compile_and_fit_a_gpu(
    tmp_path: Path, capability: int, dtype: str, kind: str, group: int, rows: str
) -> None:
    builds = compile(tmp_path, "codes", capability, dtype, kind, group, rows, tmp_path)
    names = {build.name for build in builds}
    assert names >= {"coded_gemv", "coded_narrow"}
    rounded = kind == "e4m3" and group == 0 and capability >= 89 and "129" in rows
    assert ("quantize_rows" in names) == rounded
    for build in builds:
        build.expect_fitting(capability, MOST_SPILLED)
    loads = {
        "coded_gemv": "ld.global.L1::evict_first",
        "coded_narrow": "cp.async.cg.shared.global",
    }
    for kernel, load in loads.items():
        ptx = (tmp_path / f"{kernel}.ptx").read_text()
        of_weights = [line for line in ptx.splitlines() if load in line]
        assert of_weights
        assert all(".v4.b32" in line or ", 0x10, " in line for line in of_weights)

"""The Triton kernels of paged attention, compiled for GPUs that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.triton_process import NEEDED, SPILLED, compile

pytestmark = NEEDED

REGISTERS = 2**16
"""Of a multiprocessor, for 4 warps of 32 threads each program."""


def full(*values: Any) -> Any:
    """For the long version: to compile takes seconds."""
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize(
    (
        "capability",
        "dtype",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "window",
        "softcap",
        "more",
        "spilled",
    ),
    [
        (90, "bfloat16", 64, 8, 64, 128, 0.0, ["extras"], SPILLED),
        full(80, "float16", 14, 2, 80, 0, 0.0, [], SPILLED),
        # The queries and results of 128 heads are half of the registers.
        full(86, "bfloat16", 128, 1, 128, 0, 0.0, [], 128),
        # Exact products in float32 take more registers than there are: slow, and right.
        full(86, "float32", 16, 1, 512, 0, 0.0, [], 2**20),
        (120, "bfloat16", 16, 8, 256, 4096, 50.0, [], SPILLED),
        (80, "bfloat16", 32, 8, 128, 0, 0.0, ["codes=fp8_e4m3fn"], SPILLED),
        full(90, "bfloat16", 32, 8, 64, 128, 0.0, ["codes=int8"], SPILLED),
        full(89, "float16", 14, 2, 80, 0, 0.0, ["codes=fp8_e4m3fn"], SPILLED),
        full(90, "bfloat16", 32, 8, 128, 0, 0.0, ["codes=fp8_e4m3fn"], SPILLED),
        full(100, "bfloat16", 32, 8, 128, 4096, 50.0, ["codes=fp8_e5m2"], SPILLED),
        full(100, "bfloat16", 32, 8, 128, 0, 0.0, ["codes=int8"], SPILLED),
        # To make numbers of codes takes registers, too, that heads of 256 do not leave: slower.
        full(120, "bfloat16", 16, 8, 256, 4096, 50.0, ["codes=fp8_e4m3fn"], 1024),
        full(86, "float32", 16, 2, 64, 0, 0.0, ["codes=int8"], 2**20),
    ],
)
def test_they_fit_a_gpu_and_its_registers(
    tmp_path: Path,
    capability: int,
    dtype: str,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    window: int,
    softcap: float,
    more: list[str],
    spilled: int,
) -> None:
    shape = (n_heads, n_kv_heads, head_dim, window, softcap)
    built = compile(tmp_path, "attention", capability, dtype, *shape, *more)
    assert [one.name for one in built] == ["write", "prefill", "decode", "combine"]
    for one in built:
        one.expect_fitting(capability, spilled)


@pytest.mark.parametrize(
    ("n_heads", "head_dim", "window", "programs"),
    [(32, 128, 0, 3), full(32, 128, 4096, 3), full(8, 256, 1024, 2)],
)
def test_a_multiprocessor_of_an_h200_has_room_for_the_programs_that_fill_it(
    tmp_path: Path, n_heads: int, head_dim: int, window: int, programs: int
) -> None:
    built = compile(tmp_path, "attention", 90, "bfloat16", n_heads, 8, head_dim, window, 0.0)
    for one in built:
        one.expect_fitting(90)
    (decode,) = (one for one in built if one.name == "decode")
    # Registers are given out by eights; a program takes a KiB of shared memory for itself.
    assert REGISTERS // (4 * 32 * -(-decode.registers // 8) * 8) >= programs
    assert 228 * 1024 // (decode.shared + 1024) >= programs

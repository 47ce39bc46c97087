"""The Triton kernels of sampling, compiled for GPUs that are not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.triton_process import NEEDED, compile

pytestmark = NEEDED


@pytest.mark.parametrize(
    ("capability", "dtype", "vocab_size"),
    [
        (90, "bfloat16", 128_256),
        pytest.param(86, "float16", 50_257, marks=pytest.mark.full),
        pytest.param(120, "float32", 262_144, marks=pytest.mark.full),
    ],
)
def test_they_fit_a_gpu_and_read_logits_16_bytes_at_a_time(
    tmp_path: Path, capability: int, dtype: str, vocab_size: int
) -> None:
    built = compile(tmp_path, "sampling", capability, dtype, vocab_size, f"keep={tmp_path}")
    assert [one.name for one in built] == ["tile_argmax", "totals", "choose"]
    for one in built:
        one.expect_fitting(capability)
        # A program of 16 warps has 128 a thread, one of 8 has twice as many.
        assert one.registers <= 128
    for name in ("tile_argmax", "totals"):
        ptx = (tmp_path / f"{name}.ptx").read_text()
        whole = re.findall(r"ld\.global\S*v4\.b32|ld\.global\S*v2\.b64", ptx)
        assert bool(whole) == (vocab_size % 16 == 0)
    # The loops over tokens, which have sums of masses: each thread goes on by itself.
    over_tokens = [loop for loop in loops((tmp_path / "choose.ptx").read_text()) if ".f64" in loop]
    assert len(over_tokens) >= 3
    assert not any("bar.sync" in loop for loop in over_tokens)


def loops(ptx: str) -> list[str]:
    """The loops of a kernel that hold no other."""
    lines = ptx.splitlines()
    labels = {line.partition(":")[0]: at for at, line in enumerate(lines) if line.startswith("$")}
    found = []
    for end, line in enumerate(lines):
        jump = re.search(r"\bbra\S*\s+(\$\w+)", line)
        if jump and labels[jump[1]] < end:
            found.append((labels[jump[1]], end))
    inner = [(a, b) for a, b in found if not any(a < c and d < b for c, d in found)]
    return ["\n".join(lines[a:b]) for a, b in inner]

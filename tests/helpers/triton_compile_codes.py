"""Compiles for a GPU, without one, each kernel that products with codes launch: `python -m
tests.helpers.triton_compile_codes 90 bfloat16 "4 with zeros" 128 1,16,200` (compute capability,
dtype, kind of codes, inputs of a group or 0, rows of each product); with a folder at the end, the
PTX goes there.

One line of JSON for each kernel, a `Build`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.triton_compile import TYPES, standing_in
from tests.workers.kernels.test_codes import of_kind
from workers.kernels import device_codes, triton_codes, triton_linear
from workers.kernels.device_codes import DeviceCodes, GatedCodes

KERNELS = ("coded_gemv", "coded_narrow", "dequantize", "quantize_rows")
N, K = 4096, 4096
TYPES |= {torch.int16: "*i16", torch.uint8: "*u8", torch.float8_e4m3fn: "*fp8e4nv"}


def main(
    capability: int,
    dtype: torch.dtype,
    kind: str,
    group: int,
    rows: Sequence[int],
    keep: Path | None,
) -> None:
    weight = replace(of_kind(kind, N, K, group or None, torch.float16), bias=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            device_codes, "_has_scaled_mm", lambda given, whole: whole and capability >= 89
        )
        patch.setattr(torch, "_scaled_mm", lambda x, w, **given: torch.empty(len(x), w.shape[1]))
        patch.setattr(device_codes, "linear", lambda x, w, bias: torch.empty(len(x), len(w)))
        layer = DeviceCodes(weight, dtype)
        gated = GatedCodes(weight, weight, dtype, "silu")
        with (
            standing_in(triton_codes, KERNELS, capability, keep),
            standing_in(triton_linear, ("gate",), capability, keep),
        ):
            for n in rows:
                x = torch.zeros(n, K, dtype=dtype)
                layer.parts(x)
                gated(x)


if __name__ == "__main__":
    capability, dtype, kind, group, rows, *folder = sys.argv[1:]
    keep = Path(folder[0]) if folder else None
    numbers = list(map(int, rows.split(",")))
    main(int(capability), getattr(torch, dtype), kind, int(group), numbers, keep)

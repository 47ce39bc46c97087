"""Grouped weights as the Triton kernels read them (kernels/device_codes.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from workers.kernels.codes import MULTIPLE, is_group
from workers.quantization import c_codes
from workers.quantization.c_codes import Grouped

if TYPE_CHECKING:
    from workers.kernels.device_codes import DeviceCodes, GatedCodes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(weight: Grouped) -> str | None:
    """Why the kernels cannot have this weight, None where they can."""
    if weight.dtype not in DTYPES:
        return f"the kernels are for {', '.join(map(str, DTYPES))}, not for {weight.dtype}"
    if weight.group_index is not None:
        return "its groups are of different sizes"
    if weight.groups.minimums is not None or weight.groups.factors is not None:
        return "its groups have minimums, or scales of two parts"
    if not is_group(weight.k, weight.groups.size, round_inputs=True):
        return f"its groups are of {weight.groups.size} inputs, no multiple of {MULTIPLE}"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the package triton is not installed"
    return None


def packed(weights: Sequence[Grouped]) -> DeviceCodes:
    """Return weights that are merged, one below the other, as one. Raises Misfit for those that
    cannot be one."""
    # Only a torch built for CUDA brings Triton along.
    from workers.kernels.device_codes import DeviceCodes

    return DeviceCodes(c_codes.merged(weights), weights[0].dtype)


def gated(weights: Sequence[Grouped], activation: str) -> GatedCodes:
    """Return gate and up, or one that has both, as one. Raises Misfit for those that cannot be
    one."""
    from workers.kernels.device_codes import GatedCodes

    return GatedCodes(*c_codes.gate_and_up(weights), weights[0].dtype, activation)

"""Grouped weights as the C kernel reads them (kernels/codes.py): codes of 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from workers.kernels.codes import MULTIPLE, CodedWeight, PackedCodes
from workers.kernels.packed import kernel
from workers.native import NativeUnavailable
from workers.quantization.codes import Codes, Groups, unpack
from workers.quantization.method import Misfit


class Grouped(Protocol):
    """What is read of a `grouped.GroupedWeight`."""

    codes: Codes
    groups: Groups
    dtype: torch.dtype
    bias: torch.Tensor | None
    k: int
    order: torch.Tensor | None
    group_index: torch.Tensor | None


def fits(inputs: int, group: int) -> bool:
    """Whether the kernel has groups of so many of the inputs of a layer."""
    return group % MULTIPLE == 0 or group >= inputs


def refusal(weight: Grouped) -> str | None:
    """Why the kernel cannot have this weight here, None where it can."""
    if not weight.codes.packed.is_cpu or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"the kernel is for float32 and bfloat16 on a CPU, not for {weight.dtype}"
    if weight.group_index is not None:
        return "its groups are of different sizes"
    if not fits(weight.k, weight.groups.size):
        return f"its groups are of {weight.groups.size} inputs, no multiple of {MULTIPLE}"
    try:
        kernel()
    except NativeUnavailable as error:
        return str(error)
    return None


def packed(
    weights: Sequence[Grouped], activation: str = "", round_inputs: bool = False
) -> PackedCodes:
    """Return weights that are merged, one below the other, as one.

    With an activation, they are gate and up, or one that has both. `round_inputs`, to int8.
    """
    dtype = weights[0].dtype
    if not activation:
        return PackedCodes(merged(weights), dtype, round_inputs=round_inputs)
    gate, up = gate_and_up(weights)
    return PackedCodes(gate, dtype, up, activation, round_inputs)


def merged(weights: Sequence[Grouped]) -> CodedWeight:
    """Return weights one below the other. Raises Misfit for those that cannot be one."""
    return _merged(_alike([_coded(one) for one in weights]))


def gate_and_up(weights: Sequence[Grouped]) -> tuple[CodedWeight, CodedWeight]:
    """Return gate and up, of both or of one that has both. Raises Misfit for those that cannot be
    one."""
    parts = _alike([_coded(one) for one in weights])
    if len(parts) == 1:
        return _halves(parts[0])
    gate, up = parts
    return gate, up


def _coded(weight: Grouped) -> CodedWeight:
    if weight.group_index is not None:
        raise Misfit("its groups are of different sizes, though its config does not say desc_act")
    bits = weight.codes.bits
    form = 4 if bits <= 4 else 8
    codes, zeros = unpack(weight.codes.packed, bits, weight.k), weight.groups.zeros
    if weight.codes.is_integer and zeros is None and bits != form:
        codes = codes + (2 ** (form - 1) - 2 ** (bits - 1))
    kind = "e4m3" if weight.codes.e4m3 else "integer" if weight.codes.table is None else "table"
    scales = weight.groups.scales
    return CodedWeight(
        codes,
        scales if scales.dtype in (torch.float16, torch.bfloat16) else scales.float(),
        form,
        weight.groups.size,
        zeros,
        weight.bias,
        kind,
        weight.codes.table,
        None if weight.order is None else weight.order.int(),
    )


def _alike(parts: Sequence[CodedWeight]) -> list[CodedWeight]:
    """With scales of one dtype, and zeros in all or none. Raises Misfit for what must be equal."""
    first = parts[0]
    for part in parts:
        if not (_equal(part.table, first.table) and _equal(part.order, first.order)):
            raise Misfit("layers that are merged have codes of different tables or orders")
    if len({part.scales.dtype for part in parts}) > 1:
        parts = [replace(part, scales=part.scales.float()) for part in parts]
    if any(part.zeros is not None for part in parts):
        parts = [part if part.zeros is not None else _with_zeros(part) for part in parts]
    return list(parts)


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return torch.equal(one, other)


def _with_zeros(part: CodedWeight) -> CodedWeight:
    middle = 1 << (part.bits - 1)
    zeros = torch.full_like(part.scales, middle, dtype=torch.uint8)
    return replace(part, zeros=zeros)


def _merged(parts: Sequence[CodedWeight]) -> CodedWeight:
    """One below the other."""
    zeros = [part.zeros for part in parts if part.zeros is not None]
    biases = [part.bias for part in parts if part.bias is not None]
    return replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat(zeros) if zeros else None,
        bias=torch.cat(biases) if biases else None,
    )


def _halves(whole: CodedWeight) -> tuple[CodedWeight, CodedWeight]:
    """Gate and up of a layer that has both."""
    n = len(whole.codes) // 2
    gate, up = (
        replace(
            whole,
            codes=whole.codes[start : start + n],
            scales=whole.scales[start : start + n],
            zeros=None if whole.zeros is None else whole.zeros[start : start + n],
            bias=None if whole.bias is None else whole.bias[start : start + n],
        )
        for start in (0, n)
    )
    return gate, up

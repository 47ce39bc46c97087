"""Grouped weights as the C kernels read them (kernels/codes.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

import torch

from workers.kernels.codes import ZERO_BITS, CodedWeight, PackedCodes, bits_of, is_group
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
    round_inputs: bool


def refusal(weight: Grouped) -> str | None:
    """Why the kernel cannot have this weight here, None where it can."""
    if not weight.codes.packed.is_cpu or weight.dtype not in (torch.float32, torch.bfloat16):
        return f"the kernel is for float32 and bfloat16 on a CPU, not for {weight.dtype}"
    if weight.group_index is not None:
        return "its groups are of different sizes"
    if not is_group(weight.k, weight.groups.size):
        return f"its groups are of {weight.groups.size} inputs, which is not 16 or a multiple of 32"
    try:
        kernel()
    except NativeUnavailable as error:
        return str(error)
    return None


def packed(weights: Sequence[Grouped], activation: str = "") -> PackedCodes:
    """Return weights that are merged, one below the other, as one.

    With an activation, they are gate and up, or one that has both.
    """
    dtype = weights[0].dtype
    parts = [(_coded(one), _rounds(one)) for one in weights]
    if activation:
        both = all(rounds for _, rounds in parts)
        pair = [one for one, _ in parts] if len(parts) == 2 else _halves(parts[0][0])
        gate, up = _alike([_of_one_form(one, pair) for one in pair])
        made = PackedCodes(gate, dtype, up, activation, both)
    else:
        made, *others = [
            PackedCodes(_merged(_alike([one for one, _ in some])), dtype, round_inputs=rounds)
            for (_, rounds), some in groupby(parts, lambda part: (_form(part[0]), part[1]))
        ]
        for other in others:
            made.append(other)
    if any(one.round_inputs and not _rounds(one) for one in weights):
        made.note = "activations stay as they are where weights are in groups of 16 inputs"
    return made


def _rounds(weight: Grouped) -> bool:
    """Whether activations are rounded for it: as it asks, where the kernel can."""
    return weight.round_inputs and is_group(weight.k, weight.groups.size, round_inputs=True)


def merged(weights: Sequence[Grouped]) -> CodedWeight:
    """Return weights one below the other, in 4 or 8 bits. Raises Misfit for those that cannot be
    one."""
    return _merged(_alike(_of_words(weights)))


def gate_and_up(weights: Sequence[Grouped]) -> tuple[CodedWeight, CodedWeight]:
    """Return gate and up, of both or of one that has both, in 4 or 8 bits. Raises Misfit for those
    that cannot be one."""
    parts = _alike(_of_words(weights))
    gate, up = parts if len(parts) == 2 else _halves(parts[0])
    return gate, up


def _of_words(weights: Sequence[Grouped]) -> list[CodedWeight]:
    """In the bits that words are divided in evenly, the same for all."""
    parts = [_coded(one) for one in weights]
    bits = next(n for n in ZERO_BITS if all(n >= one.bits for one in parts))
    return [_of_bits(one, bits) for one in parts]


def _coded(weight: Grouped) -> CodedWeight:
    if weight.group_index is not None:
        raise Misfit("its groups are of different sizes, though its config does not say desc_act")
    groups, bits = weight.groups, weight.codes.bits
    kind = "e4m3" if weight.codes.e4m3 else "integer" if weight.codes.table is None else "table"
    scales = groups.scales
    exact = scales.dtype in (torch.float16, torch.bfloat16, torch.int8)
    made = CodedWeight(
        unpack(weight.codes.packed, bits, weight.k),
        scales if exact else scales.float(),
        bits,
        groups.size,
        groups.zeros,
        weight.bias,
        kind,
        weight.codes.table,
        None if weight.order is None else weight.order.int(),
        groups.minimums if exact or groups.minimums is None else groups.minimums.float(),
        groups.factors,
        groups.minimum_factors,
    )
    if kind == "table":
        return replace(made, bits=4)
    allowed = bits_of(zeros=groups.zeros is not None, round_inputs=_rounds(weight))
    return _of_bits(made, next(n for n in allowed if n >= bits))


def _of_bits(part: CodedWeight, bits: int) -> CodedWeight:
    """In codes of more bits."""
    codes = part.codes
    if part.kind == "integer" and part.zeros is None and part.minimums is None:
        codes = codes + ((1 << (bits - 1)) - (1 << (part.bits - 1)))
    return replace(part, codes=codes, bits=bits)


def _form(part: CodedWeight) -> tuple[object, ...]:
    """What is the same in weights that are merged as one."""
    return (part.bits, part.group, part.kind, part.block, part.minimums is None)


def _of_one_form(part: CodedWeight, pair: Sequence[CodedWeight]) -> CodedWeight:
    """As gate and up have to be: where their forms differ, in one that has room for both."""
    bits = max(one.bits for one in pair)
    if any(one.zeros is not None for one in pair):
        part = _of_bits(part, bits)
        pair = [_of_bits(one, bits) for one in pair]
    if _form(pair[0]) == _form(pair[1]):
        return part
    if any(one.kind != "integer" or one.zeros is not None for one in pair):
        raise Misfit("gate and up are in codes of kinds that do not go together")
    group = min(one.group for one in pair)
    scales = _of_groups(part, part.scales, part.factors, group)
    if part.minimums is None:  # a power of two times the scale, and so is every sum: both are exact
        minimums = scales * -(1 << (part.bits - 1))
    else:
        minimums = _of_groups(part, part.minimums, part.minimum_factors, group)
    return replace(
        part,
        bits=bits,
        group=group,
        scales=scales,
        minimums=minimums,
        factors=None,
        minimum_factors=None,
    )


def _of_groups(
    part: CodedWeight, numbers: torch.Tensor, factors: torch.Tensor | None, group: int
) -> torch.Tensor:
    """float32 scales or minimums, of groups of so many inputs, which divide those of a weight."""
    found = numbers.float()
    if factors is not None:
        found = found * factors.float().repeat_interleave(found.shape[1] // factors.shape[1], 1)
    n_groups = -(-part.codes.shape[1] // group)
    return found.repeat_interleave(part.group // group, 1)[:, :n_groups]


def _alike(parts: Sequence[CodedWeight]) -> list[CodedWeight]:
    """With scales of one dtype, and zeros in all or none. Raises Misfit for what must be equal."""
    first = parts[0]
    for part in parts:
        if not (_equal(part.table, first.table) and _equal(part.order, first.order)):
            raise Misfit(
                "layers that are merged have codes of different tables, or inputs in different "
                "orders: serve it with --model-impl transformers"
            )
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


OF_OUTPUTS = (
    *("codes", "scales", "zeros", "bias"),
    *("minimums", "factors", "minimum_factors"),
)
"""What a weight has for each output; some of them only where it has such."""


def _merged(parts: Sequence[CodedWeight]) -> CodedWeight:
    """One below the other."""
    joined: dict[str, Any] = {}
    for name in OF_OUTPUTS:
        given = [one for one in (getattr(part, name) for part in parts) if one is not None]
        if given:
            joined[name] = torch.cat(given)
    return replace(parts[0], **joined)


def _halves(whole: CodedWeight) -> list[CodedWeight]:
    """Gate and up of a layer that has both."""
    n = len(whole.codes) // 2
    cut = {name: getattr(whole, name) for name in OF_OUTPUTS}
    return [
        replace(whole, **{name: x[at : at + n] for name, x in cut.items() if x is not None})
        for at in (0, n)
    ]

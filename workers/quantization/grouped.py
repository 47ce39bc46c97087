"""The one form that quantized weights have in memory: packed codes, and a scale for each group.

Whatever the file, element [n, k] of a weight is value(code[n, k]) * scale[n, k // group], or that
plus a minimum of the group. What the value of a code is, `Codes` and `Groups` say: an integer less
a zero point, an entry of a table, or a number of eight bits. A scale of a whole row is one group;
one of the whole weight, or of a block of rows, is repeated for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from workers.errors import UnsupportedModel
from workers.kernels.codes import PackedCodes, is_group
from workers.kernels.weight import LayerWeight
from workers.quantization import c_codes, device_codes
from workers.quantization.codes import Codes, Groups, pack, unpack
from workers.quantization.method import (
    Cut,
    Kernel,
    Misfit,
    Prepare,
    QuantMethod,
    QuantWeight,
    Size,
)
from workers.slices import Range
from workers.slices import cut as cut_tensor

VALUES = 2**20
"""Weights that are dequantized at a time: what is multiplied comes from the processor's cache."""
LEAST_GROUP = 32
"""Groups are split for a rank down to this: smaller ones would have too many scales."""


class GroupedWeight(QuantWeight):
    """Codes in packed rows, dequantized whenever they are multiplied where no kernel reads them."""

    def __init__(
        self,
        codes: Codes,
        groups: Groups,
        dtype: torch.dtype,
        bias: torch.Tensor | None = None,
        group_index: torch.Tensor | None = None,
        round_inputs: bool = False,
    ) -> None:
        """Results are of `dtype`. `group_index` [k] is the group of each input, where that is not
        k // size. With `round_inputs` the C kernel rounds activations to int8."""
        self.round_inputs = round_inputs
        self.codes, self.groups, self.dtype, self.bias = codes, groups, dtype, bias
        self.n, self.k = len(codes.packed), codes.k
        self.order: torch.Tensor | None = None
        """int64 [k]: the input that each column is multiplied with; None: they are in order."""
        self.group_index: torch.Tensor | None = None
        """int64 [k]: the group of each column; None: k // size."""
        if group_index is not None:
            self._arrange(group_index.long())

    def _arrange(self, index: torch.Tensor) -> None:
        """Bring the inputs of each group together, if all groups are of one size."""
        order = index.argsort(stable=True)
        in_order = torch.arange(self.k, device=index.device) // self.groups.size
        if not torch.equal(index[order], in_order):
            self.group_index = index
            return
        self.order, bits = order, self.codes.bits
        arranged = unpack(self.codes.packed, bits, self.k)[:, order]
        self.codes = replace(self.codes, packed=pack(arranged, bits))

    @property
    def tensors(self) -> list[torch.Tensor]:
        more = (self.codes.table, self.bias, self.order, self.group_index)
        return [self.codes.packed, *self.groups.tensors, *(x for x in more if x is not None)]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            x = x[..., self.order]
        out = x.new_empty((*x.shape[:-1], self.n))
        step = max(1, VALUES // self.k)
        for start in range(0, self.n, step):
            rows = slice(start, start + step)
            bias = None if self.bias is None else self.bias[rows]
            out[..., rows] = functional.linear(x, self._values(rows).to(x.dtype), bias)
        return out

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        found = self._in_order(self._values(ids.flatten()))
        return found.to(self.dtype).view(*ids.shape, self.k)

    def round_activations(self) -> None:
        self.round_inputs = self.codes.is_integer

    def fastest(self) -> LayerWeight:
        if self.codes.packed.is_cuda:
            why = device_codes.refusal(self)
            if why is None:
                return device_codes.packed([self])
        else:
            why = c_codes.refusal(self)
            if why is None:
                return c_codes.packed([self])
        self.note = f"quantized layers are dequantized whenever they are multiplied: {why}"
        return self

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return self._in_order(self._values(slice(None))).to(dtype)

    def _in_order(self, columns: torch.Tensor) -> torch.Tensor:
        if self.order is None:
            return columns
        placed = torch.empty_like(columns)
        placed[:, self.order] = columns
        return placed

    def _values(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """float32 [rows, k], in the order of the codes."""
        values = self.codes.values(rows)
        each = values.unflatten(1, (-1, self.groups.size)) if self._is_even else values
        minimums = self.groups.minimums_of(rows)
        if self.groups.zeros is not None:
            each -= self._of_columns(self.groups.zeros[rows].float())
        elif self.codes.is_integer and minimums is None:
            each -= 2 ** (self.codes.bits - 1)
        each *= self._of_columns(self.groups.scales_of(rows))
        if minimums is not None:
            each += self._of_columns(minimums)
        return values

    @property
    def _is_even(self) -> bool:
        """Whether each group is so many inputs, one behind the other."""
        return self.group_index is None and self.k % self.groups.size == 0

    def _of_columns(self, numbers: torch.Tensor) -> torch.Tensor:
        """[rows, groups] -> what goes with [rows, groups, size], or [rows, k]."""
        if self._is_even:
            return numbers[..., None]
        if self.group_index is not None:
            return numbers[:, self.group_index]
        return numbers.repeat_interleave(self.groups.size, 1)[:, : self.k]


class GroupedMethod(QuantMethod):
    """A method whose weights are grouped ones."""

    inputs_per_scale: int = 0
    """Inputs of a group as the file has them; 0: all of a row."""
    reorders: bool = False
    """Whether layers may have their inputs in an order of their own."""

    def borrows(self, device: torch.device, dtype: torch.dtype) -> bool:
        return True

    def prepared(self, kernel: Kernel, sizes: Sequence[Size]) -> Prepare | None:
        group = self.inputs_per_scale
        if kernel not in ("c_linear", "triton_linear") or (self.reorders and len(sizes) > 1):
            return None
        on_device = kernel == "triton_linear"
        if group and not all(
            is_group(size.inputs, group, round_inputs=on_device) for size in sizes
        ):
            return None
        return _on_device if on_device else packed_codes


def packed_codes(weights: Sequence[QuantWeight], activation: str) -> PackedCodes:
    """Return grouped weights as the C kernel has them; see `Prepare`."""
    return c_codes.packed(_grouped(weights), activation)


def _on_device(weights: Sequence[QuantWeight], activation: str) -> Any:
    grouped = _grouped(weights)
    return device_codes.gated(grouped, activation) if activation else device_codes.packed(grouped)


def _grouped(weights: Sequence[QuantWeight]) -> list[GroupedWeight]:
    grouped = [one for one in weights if isinstance(one, GroupedWeight)]
    assert len(grouped) == len(weights)
    return grouped


def own_size(size: Size, cut: Cut) -> Size:
    """What a rank has of a layer."""
    n, k = (
        whole if ranges is None else sum(one.size for one in ranges)
        for whole, ranges in zip(size, cut, strict=False)
    )
    return Size(n, k, size.bias)


def own_groups(whole: Groups, size: Size, cut: Cut) -> Groups:
    """Return a rank's part, in memory of its own. A group that a rank has not all of is split."""
    scales, zeros, group = whole.scales, whole.zeros, whole.size
    both = [scales] if zeros is None else [scales, zeros]
    if cut.outputs is not None:
        both = [cut_tensor(one, {0: cut.outputs}) for one in both]
    if cut.inputs is not None and group < size.inputs:
        unit = own_group(group, size, cut)
        if unit < group:
            both = [one.repeat_interleave(group // unit, 1) for one in both]
        ranges = [Range(one.start // unit, -(-one.end // unit)) for one in cut.inputs]
        both, group = [cut_tensor(one, {1: ranges}) for one in both], unit
    group = min(group, own_size(size, cut).inputs)
    made = [one.clone(memory_format=torch.contiguous_format) for one in both]
    return Groups(made[0], made[1] if zeros is not None else None, group)


def own_group(group: int, size: Size, cut: Cut) -> int:
    """Return the size of a rank's groups: less than the layer's where it has parts of some.

    Raises UnsupportedModel where too little would be left of one.
    """
    if cut.inputs is None or group >= size.inputs:
        return group
    edges = {edge for one in cut.inputs for edge in one if edge != size.inputs}
    unit = math.gcd(group, *edges)
    if unit < min(group, LEAST_GROUP):
        raise UnsupportedModel(
            f"its groups of {group} inputs would be cut at {', '.join(map(str, sorted(edges)))}: "
            "serve it with fewer ranks (--num-shard), which have more of them"
        )
    return unit


def group_index(given: torch.Tensor | None, k: int, size: int) -> torch.Tensor | None:
    """Return the group of each input [k] of a layer as its file has it, in memory of its own; None
    where groups of `size` are simply one behind the other. Raises Misfit."""
    if given is None or not bool(given.any()):
        return None
    if torch.equal(given.long(), torch.arange(k, device=given.device) // size):
        return None
    n_groups, least, most = -(-k // size), int(given.min()), int(given.max())
    if not 0 <= least <= most < n_groups:
        raise Misfit(f"its g_idx has groups {least} to {most}, and there are {n_groups}")
    return given.clone()


def in_units(ranges: list[Range] | None, unit: int, per_unit: int = 1) -> list[Range] | None:
    """Ranges of outputs or inputs, `unit` of which are packed into `per_unit` numbers, as ranges of
    those. Raises UnsupportedModel for one that does not have them whole."""
    if ranges is None:
        return None
    if any(edge % unit for one in ranges for edge in one):
        shown = ", ".join(f"{one.start} to {one.end}" for one in ranges)
        raise UnsupportedModel(
            f"{unit} of its numbers are packed together, and a rank would have {shown}: serve it "
            "with fewer ranks (--num-shard)"
        )
    return [Range(*(edge // unit * per_unit for edge in one)) for one in ranges]


def own_bias(bias: torch.Tensor | None) -> torch.Tensor | None:
    """A copy: what was read may be a view of a file."""
    return None if bias is None else bias.clone()

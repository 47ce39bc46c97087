"""Weights of a plain checkpoint, quantized while they are loaded, as --quantize says.

A rank quantizes what it has of a row by the whole row's numbers, so that its weights stand for the
same numbers whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups, pack
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    own_bias,
    own_group,
    own_groups,
    own_size,
)
from workers.quantization.method import Cut, Kind, Size, Slot, Tensors
from workers.slices import Slices
from workers.slices import cut as cut_tensor

VALUES = 2**18
"""Weights that are quantized at a time: what is made of them stays in the cache."""
E4M3 = torch.float8_e4m3fn
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The quantiles of a normal distribution, from Dettmers et al., QLoRA (2023), appendix E."""
FP4 = tuple(sign * value / 12.0 for sign in (1.0, -1.0) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
"""bitsandbytes' numbers of a bit of sign, two of exponent and one of mantissa; the largest is 1."""
CLIPS = (-9.6, -8.9, -8.2, -7.5, -6.8)
"""What the largest weight of a group may be, in steps: of these, what errs least is taken. -8 is
the least code; beyond it the largest is clipped, and all others have finer steps."""

Rounded = tuple[torch.Tensor, torch.Tensor]
"""Of float32 groups [m, size]: uint8 codes of the same shape, and scales [m, 1]."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights are quantized."""

    bits: int
    group: int
    """Inputs of a scale; 0: all of a row."""
    round: Callable[[torch.Tensor], Rounded]
    table: tuple[float, ...] | None = None
    e4m3: bool = False
    of_inputs: bool = False
    """Activations are rounded too, to int8, and so is the output layer's weight."""


def _steps(largest: torch.Tensor, n: float) -> torch.Tensor:
    """Largest values and how many steps they are -> steps; 1 for groups of zeros."""
    return torch.where(largest == 0, 1.0, largest / n)


def round_int8(groups: torch.Tensor) -> Rounded:
    scale = _steps(groups.abs().amax(1, keepdim=True), 127.0)
    return ((groups / scale).round() + 128).to(torch.uint8), scale


def round_eetq(groups: torch.Tensor) -> Rounded:
    """128 steps, of which EETQ has but 127 above zero."""
    scale = _steps(groups.abs().amax(1, keepdim=True), 128.0)
    return ((groups / scale).round().clamp(-128, 127) + 128).to(torch.uint8), scale


def round_int4(groups: torch.Tensor) -> Rounded:
    """Scales are float16."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best_codes = torch.zeros_like(groups)
    best_scale = torch.ones_like(extreme)
    least = torch.full_like(extreme, torch.inf)
    for clip in CLIPS:
        scale = _steps(extreme, clip).half().float()
        scale = torch.where(scale == 0, 1.0, scale)
        codes = (groups / scale).round_().clamp_(-8, 7)
        # The scale that fits these codes best, and the codes that fit it.
        fitting = (groups * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True)
        fitting = torch.where(fitting.isfinite(), fitting, scale).half().float()
        scale = torch.where(fitting == 0, scale, fitting)
        codes = (groups / scale).round_().clamp_(-8, 7)
        error = (codes * scale - groups).square_().sum(1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best_scale = torch.where(better, scale, best_scale)
        best_codes = torch.where(better, codes, best_codes)
    return (best_codes + 8).to(torch.uint8), best_scale.half()


def round_e4m3(groups: torch.Tensor) -> Rounded:
    scale = _steps(groups.abs().amax(1, keepdim=True), torch.finfo(E4M3).max)
    return (groups / scale).to(E4M3).view(torch.uint8), scale


def rounding_to(table: tuple[float, ...]) -> Callable[[torch.Tensor], Rounded]:
    """To the nearest value of a table, times the largest of a group. Scales are bfloat16, as the
    weights that they come from are."""
    values, order = torch.tensor(table).sort()
    between = (values[1:] + values[:-1]) / 2

    def rounded(groups: torch.Tensor) -> Rounded:
        scale = _steps(groups.abs().amax(1, keepdim=True), 1.0).bfloat16()
        device = groups.device
        found = torch.bucketize(groups / scale.float(), between.to(device))
        return order.to(device).take(found).to(torch.uint8), scale

    return rounded


ROUNDINGS = {
    "bitsandbytes": Rounding(8, 0, round_int8),
    "bitsandbytes-fp4": Rounding(4, 64, rounding_to(FP4), FP4),
    "bitsandbytes-nf4": Rounding(4, 64, rounding_to(NF4), NF4),
    "eetq": Rounding(8, 0, round_eetq),
    "fp8": Rounding(8, 0, round_e4m3, e4m3=True),
    "int4": Rounding(4, 32, round_int4, of_inputs=True),
    "int8": Rounding(8, 0, round_int8, of_inputs=True),
}
"""By the value of --quantize."""


class OnTheFlyMethod(GroupedMethod):
    """One of ROUNDINGS."""

    experts = "stacked"

    def __init__(self, flag: str) -> None:
        self.name, self.flags = flag, frozenset({flag})
        self._rounding = ROUNDINGS[flag]
        self.inputs_per_scale = self._rounding.group
        self.columns = self._rounding.group or 1
        self.in_integers = self._rounding.table is None and not self._rounding.e4m3
        self._of_head: OnTheFlyMethod | None = None
        if self._rounding.of_inputs:
            self._of_head = self if flag == "int8" else OnTheFlyMethod("int8")

    def describe(self) -> str:
        rounding = self._rounding
        inputs = f"groups of {rounding.group} inputs" if rounding.group else "rows"
        activations = ", activations in int8 on a CPU" if rounding.of_inputs else ""
        return f"{self.name}, {rounding.bits} bits in {inputs}{activations}"

    def for_layer(self, name: str, kind: Kind) -> OnTheFlyMethod | None:
        if kind in ("linear", "experts"):
            return self
        # The output layer, which loses most by few bits, is never in less than eight.
        return self._of_head if kind == "head" else None

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        group = self._rounding.group
        if group and size.inputs % group:
            raise UnsupportedModel(
                f"--quantize {self.name} has groups of {group} inputs, of which the {size.inputs} "
                "of a layer are no multiple: use --quantize int8"
            )
        slots = {"weight": Slot((size.outputs, size.inputs), dtype)}
        return slots | ({"bias": Slot((size.outputs,), dtype)} if size.bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        own_group(self._rounding.group or size.inputs, size, cut)
        # Rows are whole when they are rounded.
        if cut.outputs is None:
            return {}
        return {"weight": {0: cut.outputs}, "bias": {0: cut.outputs}}

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        rounding, given = self._rounding, tensors["weight"]
        k = given.shape[1]
        group = rounding.group or k
        codes, scales = [], []
        for some in given.split(max(1, VALUES // k)):
            made, scale = rounding.round(some.float().view(-1, group))
            rows = made.view(-1, k)
            if cut.inputs is not None:
                rows = cut_tensor(rows, {1: cut.inputs})
            codes.append(pack(rows, rounding.bits))
            scales.append(scale.view(-1, k // group))
        # The outputs are the rank's own already.
        groups = own_groups(Groups(torch.cat(scales), None, group), size, Cut(None, cut.inputs))
        table = None
        if rounding.table is not None:
            table = torch.tensor(rounding.table, device=given.device)
        inputs = own_size(size, cut).inputs
        return GroupedWeight(
            Codes(torch.cat(codes), inputs, rounding.bits, table, rounding.e4m3),
            groups,
            dtype,
            own_bias(tensors.get("bias")),
            round_inputs=rounding.of_inputs and dtype is torch.bfloat16,
        )

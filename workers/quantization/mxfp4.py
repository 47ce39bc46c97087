"""MXFP4, as gpt-oss has it: experts in numbers of four bits, and a power of two for each 32 inputs.

Of each projection of a layer's experts, uint8 `blocks` [experts, n, k / 32, 16] are codes of e2m1
numbers, the earlier of two in the low nibble, and `scales` [experts, n, k / 32] the exponents plus
127. Outputs of gate and up take turns.
"""

from __future__ import annotations

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups
from workers.quantization.grouped import GroupedMethod, GroupedWeight, in_units, own_bias
from workers.quantization.method import Cut, Kind, Size, Slot, Tensors
from workers.slices import Slices

GROUP = 32
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*POSITIVE, *(-value for value in POSITIVE))
"""The numbers of a sign, two bits of exponent and one of fraction, by their bits."""
LEAST = 0x40
"""2 ** -127, the least of the scales, in bfloat16, whose field of exponents does not have it."""


class MXFP4Method(GroupedMethod):
    """It has no settings."""

    name = "mxfp4"
    experts = "stacked"
    flags = frozenset({"mxfp4"})
    columns = GROUP
    inputs_per_scale = GROUP

    def describe(self) -> str:
        return f"mxfp4, 4 bits in groups of {GROUP} inputs"

    def for_layer(self, name: str, kind: Kind) -> MXFP4Method | None:
        return self if kind == "experts" else None

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n, k, bias = size
        if k % GROUP:
            raise UnsupportedModel(
                f"mxfp4 has groups of {GROUP} inputs, of which the {k} of its experts are no "
                "multiple"
            )
        slots = {
            "blocks": Slot((n, k // GROUP, GROUP // 2), stored=(torch.uint8,)),
            "scales": Slot((n, k // GROUP), stored=(torch.uint8, torch.float8_e8m0fnu)),
        }
        return slots | ({"bias": Slot((n,), dtype)} if bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        slices: Slices = {} if cut.outputs is None else {0: cut.outputs}
        groups = in_units(cut.inputs, GROUP)
        both = slices if groups is None else slices | {1: groups}
        return {"blocks": both, "scales": both} | ({"bias": slices} if slices else {})

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        blocks, exponents = tensors["blocks"], tensors["scales"].view(torch.uint8)
        bits = exponents.to(torch.int16) << 7  # where bfloat16 has its exponent, plus 127 as well
        scales = torch.where(exponents == 0, LEAST, bits).view(torch.bfloat16)
        n, n_groups, _ = blocks.shape
        table = torch.tensor(E2M1, device=blocks.device)
        codes = Codes(blocks.reshape(n, -1).clone(), n_groups * GROUP, 4, table)
        return GroupedWeight(
            codes, Groups(scales, None, GROUP), dtype, own_bias(tensors.get("bias"))
        )

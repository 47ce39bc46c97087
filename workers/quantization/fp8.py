"""fp8: numbers of eight bits (e4m3), and scales of the whole weight, of each row, or of blocks.

Scales multiply, `weight_scale_inv` too. Scales of activations, which static checkpoints have, are
not used: activations keep their dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    own_bias,
    own_group,
    own_groups,
    own_size,
)
from workers.quantization.method import Cut, Misfit, Size, Slot, Tensors
from workers.slices import Slices

E4M3 = torch.float8_e4m3fn
SCALES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)
OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")


class FP8Method(GroupedMethod):
    """The settings of one checkpoint."""

    name = "fp8"
    flags = frozenset({"fp8"})

    def __init__(self, name: str, block: tuple[int, int] | None) -> None:
        """`block` are the outputs and inputs of one scale; None: it is of a row or of all."""
        self._name, self._block = name, block
        self.columns = block[1] if block else 1
        self.inputs_per_scale = block[1] if block else 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> FP8Method:
        stored = str(config.get("fmt") or "e4m3")
        if "e4m3" not in stored:
            raise UnsupportedModel(f"its weights are in fp8 of format {stored}; served is e4m3")
        block = config.get("weight_block_size")
        if block is not None and (len(block) != 2 or min(block) < 1):
            raise UnsupportedModel(f"its weight_block_size is {block}, and should be two numbers")
        return cls(str(config["quant_method"]), (block[0], block[1]) if block else None)

    def describe(self) -> str:
        blocks = f" in blocks of {self._block[0]}x{self._block[1]}" if self._block else ""
        return f"{self._name}, 8 bits{blocks}"

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        return fp8_slots(size, self._block) | (
            {"bias": Slot((size.outputs,), dtype)} if size.bias else {}
        )

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        if self._block:
            own_group(self._block[1], size, cut)
        return plain_cut(cut)

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        scale = tensors.get("weight_scale_inv", tensors.get("weight_scale"))
        if scale is None:
            raise Misfit("it has neither weight_scale nor weight_scale_inv")
        groups = own_groups(row_groups(scale, size, self._block), size, cut)
        codes = e4m3_codes(tensors["weight"], own_size(size, cut))
        return GroupedWeight(codes, groups, dtype, own_bias(tensors.get("bias")))


def fp8_slots(size: Size, block: tuple[int, int] | None) -> dict[str, Slot]:
    """A weight [n, k] and its scales, in any shape that they have in files."""
    n, k, _ = size
    shapes: tuple[tuple[int, ...], ...] = ((), (1,), (1, 1), (n,), (n, 1))
    if block:
        shapes = ((-(-n // block[0]), -(-k // block[1])),)
    scale = Slot(shapes[0], stored=SCALES, others=shapes[1:], optional=True)
    unused = Slot((), others=((1,), (1, 1)), optional=True)
    return {
        "weight": Slot((n, k), stored=(E4M3,)),
        "weight_scale": scale,
        "weight_scale_inv": scale,
    } | dict.fromkeys(OF_ACTIVATIONS, unused)


def e4m3_codes(weight: torch.Tensor, size: Size) -> Codes:
    """Return a weight [n, k] as codes, in memory of its own. Raises Misfit for NaN."""
    packed = weight.contiguous().view(torch.uint8).clone()
    if bool(((packed & 127) == 127).any()):
        raise Misfit("its weight has NaN among its numbers")
    return Codes(packed, size.inputs, e4m3=True)


def plain_cut(cut: Cut) -> dict[str, Slices]:
    """Of a weight [n, k] and a bias [n]."""
    weight: Slices = {} if cut.outputs is None else {0: cut.outputs}
    weight |= {} if cut.inputs is None else {1: cut.inputs}
    return {"weight": weight} | ({} if cut.outputs is None else {"bias": {0: cut.outputs}})


def row_groups(
    scale: torch.Tensor,
    size: Size,
    block: tuple[int, int] | None,
    zeros: torch.Tensor | None = None,
) -> Groups:
    """Scales of any scope, and zero points of the same, for each row; of a whole layer."""
    n, k, _ = size
    group = block[1] if block else k

    def of_rows(found: torch.Tensor) -> torch.Tensor:
        if block:
            return found.repeat_interleave(block[0], 0)[:n]
        return found.reshape(-1, 1).expand(n, 1)

    return Groups(of_rows(scale.float()), None if zeros is None else of_rows(zeros), group)

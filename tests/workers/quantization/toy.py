"""A quantization method through the public seam: int8 codes, and a scale for each group of inputs.

`python -m tests.workers.quantization.toy` is a worker that knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from workers.__main__ import main
from workers.errors import UnsupportedModel
from workers.quantization.method import Cut, QuantMethod, QuantWeight, Size, Slot, Tensors
from workers.quantization.registry import METHODS
from workers.slices import Range, Slices


class ToyWeight(QuantWeight):
    def __init__(self, tensors: Tensors, dtype: torch.dtype) -> None:
        self.codes, self.scales = tensors["codes"], tensors["scales"]
        self.bias, self.dtype = tensors.get("bias"), dtype

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [one for one in (self.codes, self.scales, self.bias) if one is not None]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.dense(self.dtype), self.bias)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return dequantized(self.codes[ids], self.scales[ids]).to(self.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return dequantized(self.codes, self.scales).to(dtype)


class ToyMethod(QuantMethod):
    name = "toy"

    def __init__(self, group: int) -> None:
        self.columns = group

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ToyMethod:
        return cls(config["group_size"])

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n, k, bias = size
        slots = {"codes": Slot((n, k)), "scales": Slot((n, k // self.columns))}
        return slots | ({"bias": Slot((n,), dtype)} if bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        outputs: Slices = {} if cut.outputs is None else {0: cut.outputs}
        if cut.inputs is None:
            return {"codes": outputs, "scales": outputs, "bias": outputs}
        if any(edge % self.columns for one in cut.inputs for edge in one):
            raise UnsupportedModel(f"groups of {self.columns} inputs are on one rank")
        groups = [Range(*(edge // self.columns for edge in one)) for one in cut.inputs]
        return {"codes": {1: cut.inputs}, "scales": {1: groups}}

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> ToyWeight:
        return ToyWeight(tensors, dtype)


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    groups: torch.Tensor = codes.unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales.float()[..., None]).flatten(-2)


if __name__ == "__main__":
    METHODS[ToyMethod.name] = ToyMethod
    main()

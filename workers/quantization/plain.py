"""Weights that are not quantized: `weight` [n, k] and `bias` [n], in the dtype of the model.

On a CPU in bfloat16 the weight is packed for a C kernel of ours (kernels/packed.py), or reordered
for oneDNN where there is none. Everything else, float32 among it, stays plain and runs torch's own
linear, so that results in float32 are bit for bit torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional

from workers.kernels.packed import PackedWeight, kernel
from workers.kernels.weight import LayerWeight
from workers.native import NativeUnavailable
from workers.quantization.method import (
    Cut,
    ExpertLayout,
    Kernel,
    Prepare,
    QuantMethod,
    QuantWeight,
    Size,
    Slot,
    Tensors,
)
from workers.slices import Slices

if TYPE_CHECKING:
    from workers.kernels.device_linear import DeviceLinear, GatedLinear

WeightAndBias = tuple[torch.Tensor, torch.Tensor | None]
"""A weight [n, k] and its bias [n]."""


class PlainWeight(QuantWeight):
    """The weight as it is, through torch."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.matrix, self.bias = matrix, bias

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.matrix] if self.bias is None else [self.matrix, self.bias]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.matrix, self.bias)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, self.matrix)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return self.matrix.to(dtype)

    def fastest(self) -> LayerWeight:
        form, note = form_of(self.matrix.device, self.matrix.dtype)
        made = self if form is None else form(self.matrix, self.bias)
        made.note = note
        return made


class ReorderedWeight(LayerWeight):
    """The weight in oneDNN's own order; the tensor it came from is not kept."""

    ROWS = 16
    """Rows that oneDNN picks the order for. Any other number runs too, none much slower."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._ordered = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), self.ROWS)
        self._bias = bias

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self._ordered] if self._bias is None else [self._ordered, self._bias]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._ordered, self._bias, "none", [], ""
        )
        return out


class PlainMethod(QuantMethod):
    """No quantization."""

    name = "none"
    experts: ClassVar[ExpertLayout] = "whole"

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        slots = {"weight": Slot((size.outputs, size.inputs), dtype)}
        return slots | ({"bias": Slot((size.outputs,), dtype)} if size.bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        slices: dict[str, Slices] = {"weight": {}}
        if cut.outputs is not None:
            slices = {"weight": {0: cut.outputs}, "bias": {0: cut.outputs}}
        if cut.inputs is not None:
            slices["weight"][1] = cut.inputs
        return slices

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> PlainWeight:
        return PlainWeight(tensors["weight"], tensors.get("bias"))

    def borrows(self, device: torch.device, dtype: torch.dtype) -> bool:
        return form_of(device, dtype)[0] is not None

    def prepared(self, kernel: Kernel, sizes: Sequence[Size]) -> Prepare | None:
        return PREPARED[kernel]


def form_of(
    device: torch.device, dtype: torch.dtype
) -> tuple[type[ReorderedWeight] | type[PackedWeight] | None, str | None]:
    """Return the fastest available form, None being the plain one, and what was given up for it."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return None, None
    try:
        if not kernel().multiplies_bf16():
            raise NativeUnavailable("the processor has no AVX512_BF16 instructions")
    except NativeUnavailable as error:
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return ReorderedWeight, f"linear layers run slower, through oneDNN: {error}"
        return None, f"linear layers run slowest, through plain torch: {error}"
    return PackedWeight, None


def _packed(weights: Sequence[QuantWeight], activation: str) -> PackedWeight:
    parts = _parts(weights)
    if activation:
        gate, up = _gate_up(parts)
        return PackedWeight(*gate, up=up, activation=activation)
    return PackedWeight(*_merged(parts))


def _on_device(weights: Sequence[QuantWeight], activation: str) -> DeviceLinear | GatedLinear:
    # Only a torch built for CUDA brings Triton along.
    from workers.kernels.device_linear import DeviceLinear, GatedLinear

    parts = _parts(weights)
    if activation:
        return GatedLinear(*_gate_up(parts), activation)
    matrix, bias = _merged(parts)
    if len(parts) == 1:
        # On the host, what is borrowed may be a view of a file.
        matrix = matrix.clone() if matrix.device.type == "cpu" else matrix.contiguous()
        bias = bias.clone() if bias is not None and bias.device.type == "cpu" else bias
    return DeviceLinear(matrix, bias)


def _rows(weights: Sequence[QuantWeight], activation: str) -> torch.Tensor:
    ((matrix, _),) = _parts(weights)
    return matrix.contiguous()


PREPARED: dict[Kernel, Callable[[Sequence[QuantWeight], str], object]] = {
    "c_linear": _packed,
    "c_rows": _rows,
    "triton_linear": _on_device,
    "triton_rows": _rows,
}


def _parts(weights: Sequence[QuantWeight]) -> list[WeightAndBias]:
    parts: list[WeightAndBias] = []
    for one in weights:
        assert isinstance(one, PlainWeight)
        parts.append((one.matrix, one.bias))
    return parts


def _merged(parts: Sequence[WeightAndBias]) -> WeightAndBias:
    """One below the other; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    biases = [bias for _, bias in parts if bias is not None]
    return torch.cat([matrix for matrix, _ in parts]), torch.cat(biases) if biases else None


def _gate_up(parts: Sequence[WeightAndBias]) -> tuple[WeightAndBias, WeightAndBias]:
    """Weight and bias of both, whether they come as one layer or as two."""
    n = 2 // len(parts)
    gate, up = (
        (matrix, None if bias is None else bias.chunk(n)[at])
        for whole, bias in parts
        for at, matrix in enumerate(whole.chunk(n))
    )
    return gate, up

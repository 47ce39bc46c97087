"""Linear layers for inference: one class, whatever form its weight takes.

On a CPU in bfloat16 the weight is packed for a C kernel of ours (packed.py), or where that cannot
be had reordered for oneDNN. Everything else, float32 among it, stays plain and runs torch's own
linear, so that results in float32 are bit for bit torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from workers.layers.packed import PackedWeight, kernel
from workers.native import NativeUnavailable


class Weight(Protocol):
    """A weight [n, k] and its bias [n] in some form."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., k] -> [..., n], of the weight's dtype and device."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What it keeps in memory."""


class PlainWeight:
    """The weight as it is, through torch."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._weight, self._bias)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self._weight] if self._bias is None else [self._weight, self._bias]


class ReorderedWeight:
    """The weight in oneDNN's own order; the tensor it came from is not kept."""

    ROWS = 16
    """Rows that oneDNN picks the order for. Any other number runs too, none much slower."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.ROWS)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self._weight] if self._bias is None else [self._weight, self._bias]


class Linear(nn.Module):
    """`nn.Linear` for inference. It has no parameters: its weight may have no plain form."""

    def __init__(self, in_features: int, out_features: int, weight: Weight) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self._weight = weight

    @classmethod
    def from_linear(cls, *linears: nn.Linear) -> Linear:
        """One layer out of one or more that share their input. The results of several lie side by
        side: `q, k, v = layer(x).split([n_q, n_k, n_v], dim=-1)`.

        The weights are copied unless a single one stays plain. Raises ValueError for layers that
        differ in input size, dtype, device, or in having a bias.
        """
        first = linears[0]
        kinds = {(x.in_features, x.weight.dtype, x.weight.device, x.bias is None) for x in linears}
        if len(kinds) > 1:
            raise ValueError(
                "layers that are joined must agree in input size, dtype, device and in having a "
                f"bias, got {sorted(map(str, kinds))}"
            )
        weight = _joined([x.weight for x in linears])
        bias = None if first.bias is None else _joined([x.bias for x in linears])
        form = _form(weight.device, weight.dtype)[0]
        return cls(first.in_features, weight.shape[0], form(weight, bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return self._weight(x)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What it keeps in memory."""
        return self._weight.tensors

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"{type(self._weight).__name__}"
        )


def stays_plain(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a Linear keeps the very tensor that it is made from."""
    return _form(device, dtype)[0] is PlainWeight


def replace_linears(
    model: nn.Module, fill: Callable[[nn.Linear], None] = lambda linear: None
) -> list[str]:
    """Put a Linear in the place of every `nn.Linear` of a model (subclasses are left alone), and
    say what was given up for it. `fill` is called with each before, to give it its weight.

    Layer by layer, so that little more than one weight is ever there twice. What stays there twice
    is an embedding whose weight is also the output layer's: rows are looked up in the plain form,
    the output layer has its own, n_vocab x hidden x 2 bytes.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                places.setdefault(id(child), []).append((parent, name))
    notes: list[str] = []
    for found in places.values():
        parent, name = found[0]
        linear: nn.Linear = getattr(parent, name)
        fill(linear)
        note = _form(linear.weight.device, linear.weight.dtype)[1]
        notes += [note] if note and note not in notes else []
        ours = Linear.from_linear(linear)
        for parent, name in found:
            setattr(parent, name, ours)
    return notes


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return (torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]).detach()


def _form(
    device: torch.device, dtype: torch.dtype
) -> tuple[type[PlainWeight] | type[ReorderedWeight] | type[PackedWeight], str | None]:
    """The fastest form that can be had, and what was given up for it, or None."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return PlainWeight, None
    try:
        if not kernel().multiplies_bf16():
            raise NativeUnavailable("the processor has no AVX512_BF16 instructions")
    except NativeUnavailable as error:
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return ReorderedWeight, f"linear layers run slower, through oneDNN: {error}"
        return PlainWeight, f"linear layers run slowest, through plain torch: {error}"
    return PackedWeight, None

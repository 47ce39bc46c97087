"""Linear layers for inference: one class, whatever form its weight takes."""

from __future__ import annotations

import torch

from workers.kernels.weight import LayerWeight
from workers.layers.layer import WHOLE, Layer, Style, n_of
from workers.quantization.method import QuantMethod, QuantWeight, Size, Tensors


class Linear(Layer):
    """`nn.Linear` for inference."""

    weight: LayerWeight

    def __init__(
        self,
        method: QuantMethod,
        size: Size,
        dtype: torch.dtype,
        device: torch.device,
        style: Style = WHOLE,
    ) -> None:
        """`size` is the whole layer's; results are of `dtype`, on `device`."""
        super().__init__(method.slots(size, dtype), style)
        self.method, self.size = method, size
        self.dtype, self.device = dtype, device
        self.round_activations = False
        """To int8, where weights are integers times a scale."""
        self.spread(style)

    def spread(self, style: Style) -> None:
        super().spread(style)
        outputs, inputs = style.cut
        self.in_features = n_of(inputs, self.size.inputs)
        self.out_features = n_of(outputs, self.size.outputs)

    @property
    def own_size(self) -> Size:
        """This rank's."""
        return Size(self.out_features, self.in_features, self.size.bias and self.style.adds_once)

    @property
    def wanted(self) -> list[str]:
        return [leaf for leaf in self.slots if leaf != "bias" or self.style.adds_once]

    @property
    def borrows(self) -> bool:
        return self.method.borrows(self.device, self.dtype)

    def load(self, tensors: Tensors) -> None:
        weight = self.method.weight(tensors, self.size, self.style.cut, self.dtype)
        if self.round_activations:
            weight.round_activations()
        self.weight = weight
        self.loaded = True

    def settle(self) -> None:
        if isinstance(self.weight, QuantWeight):
            self.weight = self.weight.fastest()

    @property
    def note(self) -> str | None:
        return self.weight.note

    @property
    def checkpoint_weight(self) -> QuantWeight:
        """The weight as it was loaded, before `settle`."""
        assert isinstance(self.weight, QuantWeight)
        return self.weight

    @property
    def tensors(self) -> list[torch.Tensor]:
        return self.weight.tensors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features]."""
        result = self.weight.apply(x)
        combine = self.style.combine
        return result if combine is None else combine(result)

    def extra_repr(self) -> str:
        form = type(self.weight).__name__ if self.loaded else "not loaded"
        return f"in_features={self.in_features}, out_features={self.out_features}, {form}"

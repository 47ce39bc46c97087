"""The embedding of tokens, which may share its weight with the output layer."""

from __future__ import annotations

import torch
from torch import nn

from workers.kernels.codes import PackedCodes
from workers.layers.layer import WHOLE, Layer, Style, n_of
from workers.quantization.method import QuantMethod, QuantWeight, Size, Tensors


class Embedding(Layer):
    """`nn.Embedding` for inference."""

    weight: QuantWeight | PackedCodes

    def __init__(
        self,
        method: QuantMethod,
        size: Size,
        dtype: torch.dtype,
        device: torch.device,
        style: Style = WHOLE,
    ) -> None:
        """`size` is [tokens, hidden] of all ranks together."""
        super().__init__(method.slots(size, dtype), style)
        self.method, self.size = method, size
        self.dtype, self.device = dtype, device
        # What rows are multiplied with, in the families that have it: one or the other.
        self.embed_scale: torch.Tensor | None
        self.register_buffer("embed_scale", None, persistent=False)
        self.factor: float | None = None

    @property
    def own_size(self) -> Size:
        """This rank's."""
        return self.size._replace(outputs=n_of(self.style.cut.outputs, self.size.outputs))

    def load(self, tensors: Tensors) -> None:
        self.share(self.method.weight(tensors, self.size, self.style.cut, self.dtype))

    def share(self, weight: QuantWeight | PackedCodes) -> None:
        """Take a weight that another layer may have too."""
        self.weight = weight
        # transformers reads a model's dtype and device off its parameters.
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        self.empty = nn.Parameter(empty, requires_grad=False)
        self.loaded = True

    def settle(self) -> None:
        """Rows are looked up in the checkpoint's form."""

    @property
    def checkpoint_weight(self) -> QuantWeight:
        """The weight as it was loaded, where it is not the head's."""
        assert isinstance(self.weight, QuantWeight)
        return self.weight

    @property
    def tensors(self) -> list[torch.Tensor]:
        return self.weight.tensors

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] -> [..., hidden]. Raises IndexError for an id outside the vocabulary, where
        that can be seen without waiting for a device."""
        outputs, _ = self.style.cut
        if outputs is None:
            return self._scaled(self.weight.rows(ids))
        ((start, end),) = outputs
        if ids.is_cpu and not 0 <= int(ids.min()) <= int(ids.max()) < self.size.outputs:
            raise IndexError(f"token ids are 0 to {self.size.outputs - 1}")
        others = (ids < start) | (ids >= end)
        rows = self._scaled(self.weight.rows((ids - start).masked_fill(others, 0)))
        return self.combined(rows.masked_fill(others[..., None], 0))

    def scale_by(self, scale: torch.Tensor | float | None) -> None:
        """Have rows multiplied as transformers does: a tensor is rounded to their dtype first."""
        if isinstance(scale, torch.Tensor):
            self.embed_scale = scale
        else:
            self.factor = scale

    @property
    def scale(self) -> float | None:
        """What rows are multiplied with; None: nothing."""
        if self.embed_scale is not None:
            return float(self.embed_scale.to(self.dtype))
        return self.factor

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        if self.embed_scale is not None:
            return rows * self.embed_scale.to(rows.dtype)
        return rows if self.factor is None else rows * self.factor

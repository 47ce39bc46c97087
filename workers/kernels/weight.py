"""The interface of all forms of a layer's weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class LayerWeight(ABC):
    """The weight and the bias of a layer, in a form that multiplies."""

    note: str | None = None
    """What was given up for this form, for the log."""

    @property
    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that it keeps in memory."""

    @abstractmethod
    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., inputs] -> [..., outputs] of its dtype, on its device."""

"""A layer of ours in a model of transformers: what it reads of a checkpoint, and which rank's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from workers.quantization.method import Cut, Slot, Tensors
from workers.slices import Range

WHOLE_CUT = Cut()


@dataclass(frozen=True, slots=True)
class Style:
    """What of a layer one of several ranks has, and how the ranks make one result of theirs."""

    cut: Cut = WHOLE_CUT
    combine: Callable[[torch.Tensor], torch.Tensor] | None = None
    """The sum over the ranks, or their parts side by side; None: the result is not put together."""
    adds_once: bool = True
    """Whether this rank adds what is added once, such as the bias of a result that is summed."""


WHOLE = Style()


class Layer(nn.Module):
    """A layer that has no parameters, as its weight may have no plain form.

    It is made without a weight; `load` gives it one, as the checkpoint has it, and `settle` brings
    that into its fastest form.
    """

    def __init__(self, slots: dict[str, Slot], style: Style) -> None:
        super().__init__()
        self.slots = slots
        """Its tensors in the checkpoint, as wholes; not all ranks need read all of them."""
        self.style = style
        self.loaded = False

    @property
    def wanted(self) -> list[str]:
        """Which of its tensors this rank reads."""
        return list(self.slots)

    @property
    def borrows(self) -> bool:
        """Whether `settle` copies what is loaded, so that views of a mapped file will do."""
        return False

    def spread(self, style: Style) -> None:
        """Make it one rank's part. Nothing is loaded yet."""
        self.style = style

    @abstractmethod
    def load(self, tensors: Tensors) -> None:
        """Take its tensors, cut as `style` says."""

    @abstractmethod
    def settle(self) -> None:
        """Bring the weight into its fastest form."""

    @property
    def note(self) -> str | None:
        """What was given up for the form of its weight, for the log."""
        return None

    @property
    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """What it keeps in memory."""

    def combined(self, result: torch.Tensor) -> torch.Tensor:
        """Return the result of all ranks, of this rank's."""
        combine = self.style.combine
        return result if combine is None else combine(result)


def n_of(ranges: list[Range] | None, n: int) -> int:
    """How many of n numbers the ranges are; None: all."""
    return n if ranges is None else sum(one.size for one in ranges)

"""What a quantization method knows of a layer; registry.py lists the methods.

A method says which tensors of the checkpoint a layer has (`slots`), how a rank cuts them (`cut`),
and what they are together (`weight`): a QuantWeight, which multiplies, looks up rows and can be
made dense. Layers (workers/layers) and loading know nothing else of it. The fused decoders ask it
for weights in the form that their kernels read (`prepared`); where it has none, a model runs
through transformers' code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from workers.kernels.weight import LayerWeight
from workers.slices import Range, Slices

Tensors = Mapping[str, torch.Tensor]
"""Of one layer, by their names below the layer's: `weight`, `bias`, `qweight` ..."""

Kind = Literal["linear", "experts", "head", "embedding"]

ExpertLayout = Literal["whole", "stacked", "separate"]
"""How a layer's experts lie in a checkpoint:

- `whole`: in the tensors [experts, ...] that transformers' code reads, and which it gets;
- `stacked`: each tensor of `slots` with the experts as its first dimension;
- `separate`: each expert has linear layers of its own.
"""

Kernel = Literal["c_linear", "c_rows", "triton_linear", "triton_rows"]
"""What a fused decoder can ask for, of one layer or of several that are merged:

- `c_linear`: a `packed.PackedWeight`, whose `struct` is the `weight` of linear.h;
- `triton_linear`: a `device_linear.Product`, or with an activation a `GatedProduct`;
- `c_rows`, `triton_rows`: of an embedding, a tensor [tokens, hidden] of the model's dtype; the
  first may be a `codes.PackedCodes` too.
"""


class Size(NamedTuple):
    """A linear layer: y [.., outputs] = x [.., inputs] W^T + bias. An embedding has a row for each
    output."""

    outputs: int
    inputs: int
    bias: bool = False


class Slot(NamedTuple):
    """A tensor of a layer in the checkpoint, as a whole."""

    shape: tuple[int, ...]
    """ANY for a dimension of any size."""
    dtype: torch.dtype | None = None
    """It is converted to this one; None: it stays as it is in the file."""
    stored: tuple[torch.dtype, ...] = ()
    """What it may be in the file; empty: anything."""
    others: tuple[tuple[int, ...], ...] = ()
    """Shapes that it may have too."""
    optional: bool = False
    """Whether a checkpoint may lack it."""


ANY = -1
"""See `Slot.shape`."""


class Misfit(ValueError):
    """The tensors of a layer are not what their format says; the message names them."""


class Cut(NamedTuple):
    """Which outputs and inputs of a layer a rank has, one range behind the other; None: all."""

    outputs: list[Range] | None = None
    inputs: list[Range] | None = None


class QuantWeight(LayerWeight):
    """The same, as the checkpoint has it."""

    @abstractmethod
    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] -> [..., inputs]: the rows of an embedding."""

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[outputs, inputs]: what it stands for. Slow; tests compare with it."""

    def round_activations(self) -> None:
        """Have activations rounded to int8 in the fastest form, where weights are integers times a
        scale."""

    def fastest(self) -> LayerWeight:
        """Return the form that multiplies fastest where it is. Keep nothing of this one beside it,
        or return this one itself."""
        return self


Prepare = Callable[[Sequence[QuantWeight], str], Any]
"""Weights that are merged, one below the other, and an activation or "" -> what `Kernel` says. With
an activation there are two, gate and up, or one that has both. The results keep nothing of them
that does not belong to them: the weights may be views of a mapped file."""


class QuantMethod(ABC):
    """A quantization method, with the settings of one checkpoint."""

    name: str
    """`quant_method` in config.json."""
    experts: ClassVar[ExpertLayout] = "separate"
    flags: frozenset[str] = frozenset()
    """Values of --quantize that ask for it."""
    in_integers: bool = False
    """Whether there are weights that are integers times a scale."""
    columns: int = 1
    """Inputs that a rank can only have together, such as those of a group; so many columns of an
    MLP stay together."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> QuantMethod:
        """`quantization_config` of config.json. Raises UnsupportedModel for settings that are not
        built."""
        return cls()

    def describe(self) -> str:
        """Return its name, its bits and its groups, for the start-up lines and /info."""
        return self.name

    def for_layer(self, name: str, kind: Kind) -> QuantMethod | None:
        """Return the method of one layer of the model, by its name in transformers; None where its
        weight is not quantized. It is not asked about layers that the checkpoint has in 16 bits or
        more. Of experts it is asked about the module, and then about each linear layer."""
        return self

    @abstractmethod
    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        """Return the tensors of a layer whose results are of this dtype. The bias is `bias`, which
        is read by the one rank that adds it where results are summed."""

    @abstractmethod
    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        """Return which part of each tensor a rank reads; what is not named it reads whole. `size`
        is the whole layer's. Raises UnsupportedModel where the tensors cannot be cut there."""

    @abstractmethod
    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> QuantWeight:
        """Return the tensors, as `cut` left them, as the weight that a rank has of a layer.

        `size` is the whole layer's; results are of `dtype`. Raises Misfit for tensors that
        contradict each other.
        """

    def borrows(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `weight` or `fastest` copies, so that views of a mapped file will do."""
        return False

    def merges(self, other: QuantMethod) -> bool:
        """Whether `prepared` makes layers of both methods into one weight."""
        return other is self

    def prepared(self, kernel: Kernel, sizes: Sequence[Size]) -> Prepare | None:
        """Return how layers of these sizes, merged, are made into a kernel's weight; None where
        there is no way. It is asked before any tensor is read."""
        return None

"""The experts of a layer that sends each token to some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from workers.errors import UnsupportedModel
from workers.kernels.weight import LayerWeight
from workers.layers.layer import WHOLE, Layer, Style
from workers.layers.linear import Linear
from workers.quantization import registry
from workers.quantization.method import Cut, QuantMethod, QuantWeight, Size, Slot, Tensors
from workers.slices import Slices


class ExpertNames(NamedTuple):
    """What a checkpoint calls the linear layers of an expert."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


class ExpertPlace(NamedTuple):
    """Where the experts of a layer are in a checkpoint."""

    name: str
    """Of their module, in the model."""
    names: ExpertNames
    stacked: bool = False
    """Whether they lie in one tensor, whatever is usual for the method."""


PROJECTIONS = ("gate_up_proj", "down_proj")
"""Of experts that are stacked."""


class StackedExperts(Layer):
    """Experts whose weights are tensors [experts, ...], through transformers' code for them. Which
    of its functions that is, is the config's choice."""

    def __init__(self, own: nn.Module, device: torch.device, style: Style = WHOLE) -> None:
        """`own` is transformers' module, whose parameters have no memory yet."""
        parameters = dict(own.named_parameters())
        slots = {leaf: Slot(tuple(one.shape), one.dtype) for leaf, one in parameters.items()}
        super().__init__(slots, style)
        self.once: set[str] = set()
        """Tensors that `Style.adds_once` is about."""
        # Hidden from torch, for its parameters have names in `slots`.
        self._hidden: tuple[Any] = (own,)

    def load(self, tensors: Tensors) -> None:
        for leaf, tensor in tensors.items():
            if leaf in self.once and not self.style.adds_once:
                tensor = torch.zeros_like(tensor)
            self._hidden[0]._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        self.loaded = True

    def settle(self) -> None:
        """They stay as they are."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        return list(self._hidden[0].parameters())

    def forward(self, *routed: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """x [n, hidden], expert and weight [n, k] of each row -> [n, hidden]."""
        return self.combined(self._hidden[0](*routed, **named))


class QuantizedExperts(Layer):
    """Experts whose tensors are stacked, each expert a weight of its own in the method."""

    def __init__(
        self, method: QuantMethod, own: Any, device: torch.device, style: Style = WHOLE
    ) -> None:
        """`own` is transformers' module, whose gate and up are one projection.

        Raises UnsupportedModel where the method has no weights of such a size.
        """
        self.method, self.dtype, self.device = method, own.gate_up_proj.dtype, device
        self.sizes: dict[str, Size] = {}
        """Of each projection of an expert."""
        self.cuts = {name: Cut() for name in PROJECTIONS}
        """What of each this rank has."""
        self._transposed: bool = own.is_transposed
        slots: dict[str, Slot] = {}
        for name in PROJECTIONS:
            n_experts = len(getattr(own, name))
            self.sizes[name] = size = _size_of(own, name)
            for leaf, slot in method.slots(size, self.dtype).items():
                shapes = [
                    (n_experts, *self._as_stored(leaf, one)) for one in (slot.shape, *slot.others)
                ]
                slots[_stacked(name, leaf)] = slot._replace(
                    shape=shapes[0], others=tuple(shapes[1:])
                )
        super().__init__(slots, style)
        self._weights: dict[str, list[LayerWeight]] = {name: [] for name in PROJECTIONS}
        self._hidden: tuple[Any] = (own,)  # from torch, with its parameters

    @property
    def wanted(self) -> list[str]:
        once = set() if self.style.adds_once else {_stacked("down_proj", "bias")}
        return [leaf for leaf in self.slots if leaf not in once]

    @property
    def borrows(self) -> bool:
        return self.method.borrows(self.device, self.dtype)

    def cut(self, name: str, cut: Cut) -> dict[str, Slices]:
        """Have this rank's part of a projection, and return which part of each tensor that is.

        Raises UnsupportedModel where the tensors cannot be cut there.
        """
        self.cuts[name] = cut
        slices = self.method.cut(self.sizes[name], cut)
        return {
            _stacked(name, leaf): {
                1 + (1 - dim if self._is_transposed(leaf) else dim): ranges
                for dim, ranges in one.items()
            }
            for leaf, one in slices.items()
        }

    def load(self, tensors: Tensors) -> None:
        for name, size in self.sizes.items():
            leaves = self.method.slots(size, self.dtype)
            stacks = {
                leaf: tensors[key] for leaf in leaves if (key := _stacked(name, leaf)) in tensors
            }
            for at in range(len(next(iter(stacks.values())))):
                own = {
                    leaf: one[at].t().contiguous() if self._is_transposed(leaf) else one[at]
                    for leaf, one in stacks.items()
                }
                made = self.method.weight(own, size, self.cuts[name], self.dtype)
                self._weights[name].append(made)
        self.loaded = True

    def settle(self) -> None:
        for weights in self._weights.values():
            for at, one in enumerate(weights):
                if isinstance(one, QuantWeight):
                    weights[at] = one.fastest()

    @property
    def note(self) -> str | None:
        return self._weights["down_proj"][0].note

    @property
    def tensors(self) -> list[torch.Tensor]:
        weights = [one for each in self._weights.values() for one in each]
        return [tensor for one in weights for tensor in one.tensors]

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [n, hidden], expert and weight [n, k] of each row -> [n, hidden]."""

        def run(at: int, rows: torch.Tensor) -> torch.Tensor:
            mixed = self._weights["gate_up_proj"][at].apply(rows)
            return self._weights["down_proj"][at].apply(self._hidden[0]._apply_gate(mixed))

        return self.combined(_routed(x, index, weights, run))

    def _is_transposed(self, leaf: str) -> bool:
        """Whether it is [inputs, outputs] in the checkpoint, as transformers has weights."""
        return leaf == "weight" and self._transposed

    def _as_stored(self, leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if self._is_transposed(leaf) else shape


class SeparateExperts(nn.Module):
    """Experts that have linear layers of their own, by number and the checkpoint's names."""

    def __init__(
        self,
        method: QuantMethod,
        own: Any,
        place: ExpertPlace,
        device: torch.device,
        style: Style = WHOLE,
    ) -> None:
        """`own` is transformers' module, whose gate and up are one projection."""
        super().__init__()
        self.names, self.style = place.names, style
        dtype, down = own.down_proj.dtype, _size_of(own, "down_proj")
        gate = Size(down.inputs, down.outputs, down.bias)
        for at in range(own.num_experts):
            expert = nn.Module()
            for leaf in self.names:
                size = down if leaf == self.names.down else gate
                one = method.for_layer(f"{place.name}.{at}.{leaf}", "linear") or registry.PLAIN
                expert.add_module(leaf, Linear(one, size, dtype, device))
            self.add_module(str(at), expert)
        self._hidden: tuple[Any] = (own,)  # from torch, with its parameters

    def each(self) -> Iterator[tuple[str, dict[str, Linear]]]:
        """Return the linear layers of each expert, by its number and their names."""
        for at, expert in self.named_children():
            yield (
                at,
                {name: one for name, one in expert.named_children() if isinstance(one, Linear)},
            )

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [n, hidden], expert and weight [n, k] of each row -> [n, hidden]."""

        def run(at: int, rows: torch.Tensor) -> torch.Tensor:
            expert = self.get_submodule(str(at))
            gate, up, down = (getattr(expert, name) for name in self.names)
            own = self._hidden[0]
            both = gate(rows), up(rows)
            # Side by side, or in turns.
            gate_up = (
                torch.cat(both, -1) if own.is_concatenated else torch.stack(both, -1).flatten(-2)
            )
            mixed: torch.Tensor = down(own._apply_gate(gate_up))
            return mixed

        result = _routed(x, index, weights, run)
        combine = self.style.combine
        return result if combine is None else combine(result)


def _routed(
    x: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    run: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Sum what the experts of each row make of it: x [n, hidden], expert and weight [n, k]."""
    result = torch.zeros_like(x)
    for at in index.unique().tolist():
        row, place = torch.where(index == at)
        mixed = run(at, x[row])
        result.index_add_(0, row, (mixed * weights[row, place, None]).to(x.dtype))
    return result


def _size_of(own: Any, projection: str) -> Size:
    """Return the size of a projection of each expert of transformers' module."""
    _, n, k = getattr(own, projection).shape
    return Size(k, n, own.has_bias) if own.is_transposed else Size(n, k, own.has_bias)


def _stacked(projection: str, leaf: str) -> str:
    """Return the name of a stacked tensor, which for one expert alone would be `leaf`."""
    return projection if leaf == "weight" else f"{projection}_{leaf.removeprefix('weight_')}"


Experts = StackedExperts | QuantizedExperts | SeparateExperts


def experts_for(method: QuantMethod, own: Any, place: ExpertPlace, device: torch.device) -> Experts:
    """Return the experts of a layer in their method, in the place of transformers' module `own`.

    Raises UnsupportedModel for experts that the method cannot have.
    """
    if method.experts == "whole":
        return StackedExperts(own, device)
    if method.experts == "separate" and place.stacked and own.is_transposed:
        # Whether quantized ones are transposed as well is no format's to say.
        raise UnsupportedModel(
            f"the experts of a {type(own).__name__}, which lie in one tensor, are not served in "
            f"{method.name} yet; use the unquantized model"
        )
    if method.experts == "stacked" or place.stacked:
        return QuantizedExperts(method, own, device)
    return SeparateExperts(method, own, place, device)

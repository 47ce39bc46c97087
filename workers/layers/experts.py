"""The experts of a layer that sends each token to some of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from workers.errors import UnsupportedModel
from workers.layers.layer import WHOLE, Layer, Style
from workers.layers.linear import Linear
from workers.quantization import registry
from workers.quantization.method import QuantMethod, Size, Slot, Tensors


class ExpertNames(NamedTuple):
    """What a checkpoint calls the linear layers of an expert."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


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


class SeparateExperts(nn.Module):
    """Experts that have linear layers of their own, by number and the checkpoint's names."""

    def __init__(
        self,
        method: QuantMethod,
        own: Any,
        names: ExpertNames,
        device: torch.device,
        name: str,
        style: Style = WHOLE,
    ) -> None:
        """`own` is transformers' module, `name` its name in the model. Raises UnsupportedModel for
        experts of another shape."""
        super().__init__()
        if own.is_transposed or own.has_bias or not own.has_gate or own.has_post_expert_norm:
            raise UnsupportedModel(
                f"the experts of a {type(own).__name__} are not served in {method.name} yet; use "
                "the unquantized model"
            )
        self.names, self.style = names, style
        _, n, hidden = own.gate_up_proj.shape
        dtype, n = own.gate_up_proj.dtype, n // 2
        for at in range(own.num_experts):
            expert = nn.Module()
            for leaf in names:
                size = Size(hidden, n) if leaf == names.down else Size(n, hidden)
                one = method.for_layer(f"{name}.{at}.{leaf}", "linear") or registry.PLAIN
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
        result = torch.zeros_like(x)
        for at in index.unique().tolist():
            expert = self.get_submodule(str(at))
            row, place = torch.where(index == at)
            gate, up, down = (getattr(expert, name) for name in self.names)
            chosen = x[row]
            mixed = down(self._hidden[0]._apply_gate(torch.cat((gate(chosen), up(chosen)), dim=-1)))
            result.index_add_(0, row, (mixed * weights[row, place, None]).to(x.dtype))
        combine = self.style.combine
        return result if combine is None else combine(result)


Experts = StackedExperts | SeparateExperts


def experts_for(
    method: QuantMethod, own: nn.Module, names: ExpertNames, device: torch.device, name: str
) -> Experts:
    """Return the experts of a layer in their method, in the place of transformers' module `own`, by
    its name.

    Raises UnsupportedModel for experts that the method cannot have.
    """
    if method.stacked_experts:
        return StackedExperts(own, device)
    return SeparateExperts(method, own, names, device, name)

"""The weights of a draft model, read from its folder for the model that it drafts for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from workers.draft_models.heads import Head
from workers.errors import UnsupportedModel
from workers.layers.linear import Linear
from workers.quantization.method import Size
from workers.quantization.registry import PLAIN

SINGLE = "model.safetensors"
PREFIX = "medusa_heads."
"""In front of the names of some of vLLM's Medusa checkpoints."""


class TargetModel(NamedTuple):
    """What a draft model must know of the model that it drafts for."""

    head: Head
    """See `forward.HeadedModel`."""
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device


class DraftCheckpoint:
    """The tensors of a folder. Raises UnsupportedModel for files that cannot be read."""

    def __init__(self, folder: Path, target: TargetModel) -> None:
        self.target = target
        self._folder = folder
        self._files: dict[str, tuple[Any, str]] = {}
        """Of each tensor the file, and its name there."""
        single = folder / SINGLE
        for path in [single] if single.is_file() else sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, "pt")
                names = list(file.keys())  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError) as error:
                raise self.problem(f"{path.name} cannot be read: {error}") from error
            self._files |= {name.removeprefix(PREFIX): (file, name) for name in names}

    @property
    def names(self) -> Iterable[str]:
        return self._files

    def problem(self, what: str) -> UnsupportedModel:
        """Return the error that says `what` is wrong with this checkpoint."""
        return UnsupportedModel(f"the draft model {self._folder}: {what}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape. Raises UnsupportedModel for one that is missing."""
        if name not in self._files:
            raise self.problem(f"it has no tensor {name}, which its config.json asks for")
        file, stored = self._files[name]
        return tuple(file.get_slice(stored).get_shape())

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Return a tensor of this shape, in the target's dtype on its device.

        Raises UnsupportedModel for one that is missing, of another shape, or not of floats.
        """
        found = self.shape(name)
        if found != shape:
            raise self.problem(
                f"{name} has the shape {list(found)}, and for this model it must have "
                f"{list(shape)}: it is the draft model of another one"
            )
        tensor = self._tensor(name)
        if not tensor.is_floating_point():
            raise self.problem(f"{name} is of {tensor.dtype}; draft models are served in floats")
        # What is kept must not be a view of the file.
        return tensor.to(self.target.device, self.target.dtype, copy=True)

    def ids(self, name: str) -> torch.Tensor:
        """Return token ids, int64 [n]. Raises UnsupportedModel for others than the target's."""
        shape, most = self.shape(name), self.target.vocab_size
        ids = self._tensor(name).long()
        if len(shape) != 1 or not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < most:
            raise self.problem(f"{name} must be a list of token ids from 0 to {most - 1}")
        return ids.to(self.target.device)

    def linear(self, name: str, outputs: int, inputs: int) -> Linear:
        """Return a linear layer, with a bias if there is one. Raises UnsupportedModel."""
        bias = f"{name}.bias"
        return self.layer(
            self.take(f"{name}.weight", outputs, inputs),
            self.take(bias, outputs) if bias in self._files else None,
        )

    def layer(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Return the linear layer of a weight [n, k] and a bias [n], in its fastest form."""
        size = Size(weight.shape[0], weight.shape[1], bias is not None)
        made = Linear(PLAIN, size, self.target.dtype, self.target.device)
        made.load({"weight": weight} | ({} if bias is None else {"bias": bias}))
        made.settle()
        return made

    def _tensor(self, name: str) -> torch.Tensor:
        file, stored = self._files[name]
        tensor: torch.Tensor = file.get_tensor(stored)
        return tensor

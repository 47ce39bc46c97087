"""Layers of ours in the place of those of a model in transformers."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from workers.layers.embedding import Embedding
from workers.layers.experts import ExpertNames, ExpertPlace, Experts, experts_for
from workers.layers.layer import Layer
from workers.layers.linear import Linear
from workers.quantization import registry
from workers.quantization.method import Kind, QuantMethod, Size

SCALED = re.compile(r"\w*ScaledWordEmbedding")
"""Classes of transformers whose rows are multiplied with their `embed_scale`."""


class StoredLayers(NamedTuple):
    """Layers, and modules of experts, that a checkpoint has tensors of, by the model's names."""

    all: frozenset[str]
    quantized: frozenset[str]
    """Those that have tensors of another kind than numbers of 16 bits or more."""
    stacked: frozenset[str]
    """Modules of experts that lie in one tensor."""


class Replacements:
    """The layers of ours for a model, which is left as it is until they are `put`."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        method: QuantMethod = registry.PLAIN,
        expert_names: ExpertNames | None = None,
        stored: StoredLayers | None = None,
        within: tuple[str, ...] = ("",),
    ) -> None:
        """`within` is what the names of layers begin with that are replaced, the head beside them;
        of others only those that are quantized are. `stored` is of a quantized checkpoint: a layer
        that is plain there stays so, whatever its settings say.

        Raises UnsupportedModel where a layer cannot be built in the method of its checkpoint.

        Layers whose weight the code of their owner reads, such as a router that computes in
        float32, stay transformers'; so do subclasses of its linear layers.
        """
        self._model, self._device = model, device
        self._method, self._expert_names = method, expert_names or ExpertNames()
        self._stored, self._within = stored, within
        self._embedding, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        self._sources: dict[type, str] = {}
        self.modules: dict[str, Linear | Embedding | Experts] = {}
        """By the names of those that they replace."""
        places: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            places.setdefault(module, []).append(name)
        for module, names in places.items():
            if (ours := self._replacement(names, module)) is not None:
                self.modules |= dict.fromkeys(names, ours)

    @property
    def layers(self) -> dict[str, Layer]:
        """Everything that has a weight of its own, by name."""
        return {
            f"{name}.{below}" if below else name: one
            for name, module in self.modules.items()
            for below, one in module.named_modules()
            if isinstance(one, Layer)
        }

    def put(self) -> None:
        """Put them into the model."""
        if isinstance(ours := self._of(self._embedding), Embedding):
            ours.scale_by(getattr(self._embedding, "embed_scale", None))
        for name, module in self.modules.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, module)

    def _of(self, module: nn.Module) -> nn.Module | None:
        names = (name for name, one in self._model.named_modules() if one is module)
        return self.modules.get(next(names, ""))

    def _replacement(self, names: list[str], module: Any) -> Linear | Embedding | Experts | None:
        if module is not self._head and not names[0].startswith(self._within):
            stored = self._stored
            if stored is None or names[0] not in stored.quantized:
                return None
        if type(module) is nn.Linear:
            if self._is_read(names, ".weight"):
                return None
            size = Size(module.out_features, module.in_features, module.bias is not None)
            method = self._method_of(names[0], "linear")
            if module is self._head:
                method = self._method_of_head(names[0])
            return Linear(method, size, module.weight.dtype, self._device)
        if module is self._embedding:
            known = type(module) is nn.Embedding or SCALED.fullmatch(type(module).__name__)
            if not known or self._embedding_is_read(names):
                return None
            size = Size(module.num_embeddings, module.embedding_dim)
            method = self._method_of(names[0], "embedding")
            return Embedding(method, size, module.weight.dtype, self._device)
        if hasattr(module, "_apply_gate") and hasattr(module, "gate_up_proj"):
            alone = module._parameters.keys() == module.state_dict().keys()
            if not alone or self._is_read(names, "."):
                return None
            method = self._method_of(names[0], "experts")
            stacked = self._stored is not None and names[0] in self._stored.stacked
            place = ExpertPlace(names[0], self._expert_names, stacked)
            return experts_for(method, module, place, self._device)
        return None

    def _method_of(self, name: str, kind: Kind) -> QuantMethod:
        stored = self._stored
        # Experts that are in other tensors than theirs are stacked, and plain.
        if (
            stored is not None
            and name not in stored.quantized
            and (name in stored.all or kind == "experts")
        ):
            return registry.PLAIN
        return self._method.for_layer(name, kind) or registry.PLAIN

    def _method_of_head(self, name: str) -> QuantMethod:
        if self._stored is not None and name not in self._stored.all:  # it is the embedding
            names = (x for x, one in self._model.named_modules() if one is self._embedding)
            return self._method_of(next(names), "embedding")
        return self._method_of(name, "head")

    def _is_read(self, names: list[str], what: str) -> bool:
        """Whether the code of a module's owners names something of it."""
        for name in names:
            parent, _, leaf = name.rpartition(".")
            owner = type(self._model.get_submodule(parent))
            if self._names(owner, rf"self\.{re.escape(leaf + what)}"):
                return True
        return False

    def _embedding_is_read(self, names: list[str]) -> bool:
        """As `_is_read`, by any code of the model."""
        leaves = {re.escape(name.rpartition(".")[2]) for name in names}
        owners = {type(one) for one in self._model.modules()}
        pattern = rf"self\.(\w+\.)*({'|'.join(leaves)})\.weight\b"
        return any(self._names(owner, pattern) for owner in owners)

    def _names(self, owner: type, pattern: str) -> bool:
        # A class is found in its file by parsing all of that, so look at the file first.
        if re.search(pattern, _read_file(_file(owner))) is None:
            return False
        if owner not in self._sources:
            self._sources[owner] = inspect.getsource(owner)
        return re.search(pattern, self._sources[owner]) is not None


def _file(kind: type) -> str:
    """Return the file of a class; "" for one that was made at run time."""
    try:
        return inspect.getfile(kind)
    except (OSError, TypeError):
        return ""


@functools.cache
def _read_file(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""

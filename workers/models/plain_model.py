"""A model of an unquantized checkpoint, taken apart for what is to be written of it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from workers.errors import UnsupportedModel
from workers.layers.experts import ExpertNames, Experts, StackedExperts
from workers.layers.linear import Linear
from workers.layers.replace import Replacements
from workers.models.checkpoint import Checkpoint
from workers.models.description import read_config
from workers.models.matching import expert_names, stored_layers
from workers.models.pretrained import compute_buffers, on_meta
from workers.models.quantization_settings import quantization_settings
from workers.models.weights import Weights
from workers.quantization.method import ExpertLayout, Kind
from workers.quantization.plain import PlainMethod
from workers.quantization.registry import PLAIN
from workers.vision.families import layer_prefixes

BLOCK = re.compile(r"(.*?\.\d+)\.")
"""The name of a decoder layer, in that of what is in it."""
ROUTER = "router"


class PlainLayer(NamedTuple):
    """A linear layer that can be quantized."""

    name: str
    """In the model."""
    key: str
    """Of its weight in the checkpoint."""
    layer: Linear
    block: str
    """The name of the decoder layer that it is in."""


class _EachExpert(PlainMethod):
    """Plain layers; experts are apart where they are in the checkpoint."""

    experts: ClassVar[ExpertLayout] = "separate"

    def __init__(self, stored: Collection[str], names: ExpertNames) -> None:
        self._stored, self._names = stored, names

    def for_layer(self, name: str, kind: Kind) -> PlainMethod:
        apart = kind != "experts" or f"{name}.0.{self._names.gate}" in self._stored
        return self if apart else PLAIN


class PlainModel:
    """transformers' code with layers of ours, in float32, and nothing loaded yet."""

    def __init__(self, path: Path, device: torch.device, trust_remote_code: bool) -> None:
        """Raises UnsupportedModel for a quantized model, or one without layers to quantize, and
        ValueError and OSError for a broken folder."""
        config = read_config(path, trust_remote_code)
        self.checkpoint = Checkpoint(path)
        settings = quantization_settings(path, config, self.checkpoint)
        if settings is not None:
            raise UnsupportedModel(
                f"it is quantized already ({settings.get('quant_method', 'in an unknown way')}): "
                "give the unquantized model"
            )
        self.device = device
        self.module = on_meta(config, torch.float32, trust_remote_code, "eager")
        linear = [name for name, one in self.module.named_modules() if isinstance(one, nn.Linear)]
        names = expert_names(self.module)
        method = _EachExpert(stored_layers(self.module, self.checkpoint).all, names)
        ours = Replacements(self.module, device, method, names, within=layer_prefixes(self.module))
        self.weights = Weights(
            self.module, self.checkpoint, torch.float32, device, ours.layers, ours.modules
        )
        compute_buffers(self.module, self.weights, device)
        ours.put()
        self.head = self.module.get_output_embeddings()
        self.stacked = [
            name for name, one in ours.layers.items() if isinstance(one, StackedExperts)
        ]
        """Names of experts that lie in one tensor in the checkpoint, which stay plain."""
        self.layers = self._layers(ours)
        """Those that can be quantized."""
        if not self.layers:
            raise UnsupportedModel(
                f"{config.model_type} has no linear layers that can be quantized: its own are not "
                "transformers' nn.Linear, or lie in the checkpoint in another form"
            )
        own = {layer.name for layer in self.layers}
        self.ignored = [name for name in linear if name not in own]
        """Names of linear layers that stay plain."""

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Decoder layers that have something to quantize, by name, in their order."""
        return {one.block: self.module.get_submodule(one.block) for one in self.layers}

    def _layers(self, ours: Replacements) -> list[PlainLayer]:
        routed = {
            name.rpartition(".")[0]
            for name, one in ours.modules.items()
            if isinstance(one, Experts)
        }
        found: list[PlainLayer] = []
        for name, layer in ours.layers.items():
            block = BLOCK.match(name)
            if not isinstance(layer, Linear) or layer is self.head or block is None:
                continue
            # Which experts a token is sent to is decided by little weights that err much.
            if name.rpartition(".")[0] in routed or ROUTER in name.split("."):
                continue
            source = self.weights.matching.sources.get(f"{name}.weight")
            if source is None or source.converter is not None:
                continue
            found.append(PlainLayer(name, source.keys[0][1], layer, block[1]))
        return found

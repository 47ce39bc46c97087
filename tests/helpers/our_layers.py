"""Layers of ours for models and layers whose weights are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workers.layers.layer import Layer
from workers.layers.linear import Linear
from workers.layers.replace import Replacements
from workers.quantization.method import Size
from workers.quantization.registry import PLAIN


def replaced(model: Any) -> Any:
    """The model, with layers of ours that keep its very tensors."""
    found = Replacements(model, next(model.parameters()).device)
    for name, layer in found.layers.items():
        if not layer.loaded:
            layer.load(dict(model.get_submodule(name).requires_grad_(False).named_parameters()))
    found.put()
    return model


def settled(plain: nn.Linear) -> Linear:
    """A layer as the transformers path runs it."""
    size = Size(plain.out_features, plain.in_features, plain.bias is not None)
    layer = Linear(PLAIN, size, plain.weight.dtype, plain.weight.device)
    layer.load(dict(plain.requires_grad_(False).named_parameters()))
    layer.settle()
    return layer


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything a model has, by name in transformers, if none of its layers is settled."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            for leaf, tensor in zip(module.wanted, module.tensors, strict=True):
                found[f"{name}.{leaf}"] = tensor
    return found

"""What a path could get wrong in one place and still look right, planted in a loaded model.

Each fault is about one layer where it can be. A fault that a model has no place for says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from workers.attention.context import AttentionContext
from workers.attention.layer import AttentionLayer
from workers.models.transformers_path import TransformersModel

LAYERS = (1, 2)
"""In which attention is wrong: one of each kind, where kinds take turns."""


Change = Callable[[dict[str, Any]], bool]
"""Of the arguments of an attention; whether there was anything to change."""


class NoPlace(Exception):
    """The model does not have what the fault is about."""


@contextmanager
def _attending(model: TransformersModel, change: Change) -> Iterator[None]:
    """Attention whose arguments are changed; `change` says whether it did."""
    attention: Any = model.attention
    forward = attention.forward
    changed = False

    def wrong(
        layer: AttentionLayer, q: Any, k: Any, v: Any, batch: AttentionContext
    ) -> torch.Tensor:
        nonlocal changed
        if layer.index in LAYERS:
            arguments = {one.name: getattr(layer, one.name) for one in fields(layer)}
            arguments["batch"] = batch
            changed |= change(arguments)
            batch = arguments.pop("batch")
            layer = AttentionLayer(**arguments)
        result: torch.Tensor = forward(layer, q, k, v, batch)
        return result

    attention.forward = wrong
    try:
        yield
    finally:
        del attention.forward
    if not changed:
        raise NoPlace


def _changing(name: str, by: Callable[[Any], Any]) -> Change:
    def change(arguments: dict[str, Any]) -> bool:
        before = arguments[name]
        if before is None or (not isinstance(before, torch.Tensor) and not before):
            return False
        arguments[name] = by(before)
        return True

    return change


def _other_block(arguments: dict[str, Any]) -> bool:
    """The second block of every row is read where the first is."""
    context = arguments["batch"]
    tables = context.decode_block_tables.clone()
    if tables.shape[1] > 1:
        tables[:, 1] = tables[:, 0]
    prefills = []
    for chunk in context.prefills:
        table = chunk.block_table.clone()
        if len(table) > 1:
            table[1] = table[0]
        prefills.append(chunk._replace(block_table=table))
    arguments["batch"] = replace(context, decode_block_tables=tables, prefills=prefills)
    return True


LEARNED_POSITIONS = ("biogpt", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "opt", "xglm")
"""Families that add a vector to a token for where it is."""
MAKE_FREQUENCIES = ("PhimoeRotaryEmbedding",)
"""Modules that make their frequencies anew in every pass."""


def _faster(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*given: Any, **named: Any) -> tuple[torch.Tensor, float]:
        frequencies, scale = make(*given, **named)
        return frequencies.pow(1.05), scale

    return made


@contextmanager
def _rotary_base(model: TransformersModel) -> Iterator[None]:
    """A base to the power of 1.05, or tables that turn 1.1 times as fast."""
    if getattr(model.module.config, "alibi", False):
        raise NoPlace  # Falcon has a rotary embedding then that is not used
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    makers = [one for one in model.module.modules() if type(one).__name__ in MAKE_FREQUENCIES]
    makes = [one.rope_init_fn for one in makers]
    for one, make in zip(makers, makes, strict=True):
        one.rope_init_fn = _faster(make)
    for name, buffer in model.module.named_buffers():
        leaf = name.rpartition(".")[2]
        if leaf.endswith("inv_freq") and not leaf.endswith("original_inv_freq"):
            before.append((buffer, buffer.clone()))
            buffer.pow_(1.05)
        elif leaf == "embed_positions":
            before.append((buffer, buffer.clone()))
            faster = (torch.arange(len(buffer)) * 1.1).long().clamp(max=len(buffer) - 1)
            buffer.copy_(buffer[faster])
    try:
        yield
    finally:
        for buffer, old in before:
            buffer.copy_(old)
        for one, make in zip(makers, makes, strict=True):
            one.rope_init_fn = make
    if not before:
        raise NoPlace


@contextmanager
def _positions(model: TransformersModel) -> Iterator[None]:
    """Every token is taken to be one position further on, where that is not all relative."""
    kind = model.module.config.model_type
    if kind not in LEARNED_POSITIONS:
        raise NoPlace
    packed = model._packed
    model._packed = lambda ids, positions, *more: packed(  # type: ignore[assignment]
        ids, positions + 1, *more
    )
    try:
        yield
    finally:
        model._packed = packed


@contextmanager
def _experts(model: TransformersModel) -> Iterator[None]:
    """Two experts of a layer have changed places."""
    for name, parameter in model.module.named_parameters():
        if "experts" in name and parameter.dim() > 2:
            _swap(parameter)
            try:
                yield
            finally:
                _swap(parameter)
            return
    for name, module in model.module.named_modules():
        if name.endswith("experts") and isinstance(module, nn.ModuleList):
            module[0], module[1] = module[1], module[0]
            try:
                yield
            finally:
                module[0], module[1] = module[1], module[0]
            return
    yield
    raise NoPlace


def _swap(parameter: torch.Tensor) -> None:
    with torch.no_grad():
        parameter[:2] = parameter[:2].flip(0).clone()


Fault = Callable[[TransformersModel], Any]
FAULTS: dict[str, Fault] = {
    "window + 1": lambda model: _attending(model, _changing("window", lambda x: x + 1)),
    "chunk + 1": lambda model: _attending(model, _changing("chunk", lambda x: x + 1)),
    "scale": lambda model: _attending(model, _changing("scale", lambda x: x * 1.1)),
    "soft cap": lambda model: _attending(model, _changing("softcap", lambda x: x * 1.1)),
    "sinks": lambda model: _attending(model, _changing("sinks", lambda x: x + 0.5)),
    "alibi slope": lambda model: _attending(model, _changing("slopes", lambda x: x * 1.1)),
    "block": lambda model: _attending(model, _other_block),
    "rotary base": _rotary_base,
    "positions + 1": _positions,
    "expert order": _experts,
}

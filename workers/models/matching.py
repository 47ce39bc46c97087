"""Which tensors of a checkpoint fill which tensors of a model.

What a checkpoint calls a parameter, and how several of its tensors become one (the experts of a
layer, say), is transformers' knowledge and comes from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from workers.layers.experts import ExpertNames
from workers.layers.layer import Layer
from workers.layers.replace import StoredLayers
from workers.models.checkpoint import BrokenCheckpoint, Checkpoint

TENSOR = re.compile(r"(.*?)\.(?:weight\..*|[^.]+)")
"""The name of a layer, and behind it that of a tensor."""
WIDE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What all tensors of a layer are in that is not quantized."""


@dataclass(slots=True)
class Source:
    """The tensors of a checkpoint that make one parameter, or several."""

    name: str
    """Of the parameter; of several, the first."""
    converter: WeightConverter | None = None
    keys: list[tuple[str, str]] = field(default_factory=list)
    """The converter's pattern and the checkpoint's name; of a renamed tensor, just the latter."""


class Matching:
    """The tensors of a model without memory, and what fills them."""

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        layers: Mapping[str, Layer],
        replaced: Iterable[str],
    ) -> None:
        """See `Weights`."""
        self._model = model
        self._checkpoint = checkpoint
        # Not the layers: who drops one from the model drops its weight.
        self._layers = {name: layer.slots for name, layer in layers.items()}
        self.state = _state(model, layers, replaced)
        """Everything that is to be filled, by name, on the meta device."""
        self.slots = {
            f"{name}.{leaf}": slot
            for name, layer in layers.items()
            for leaf, slot in layer.slots.items()
        }
        """What layers of ours say of their tensors."""
        self.as_in_file = {name for name, slot in self.slots.items() if slot.dtype is None}
        """Those whose dtype is the file's."""
        self.notes: list[str] = []
        """What a person should know of the checkpoint."""
        self.sources = self._match()
        self.tied = self._ties()
        """Names whose numbers are another's, and whose."""
        self._check()

    @property
    def whole_bytes(self) -> int:
        """What the tensors take, of all ranks together."""
        return sum(
            self._file_bytes(name) if name in self.as_in_file else one.nbytes
            for name, one in self.state.items()
            if name not in self.tied
        )

    def lacks(self, name: str) -> bool:
        """Whether the model has this tensor, and the checkpoint neither it nor one that it is tied
        to."""
        return name in self.state and self.tied.get(name, name) not in self.sources

    def may_lack(self, name: str) -> bool:
        """Whether the checkpoint need not have this tensor."""
        return name in self.slots and self.slots[name].optional

    def ties(self, name: str, other: str) -> bool:
        """Whether all tensors of one layer are those of another."""
        leaves = [f".{leaf}" for leaf in self._layers[name]]
        return all(self.tied.get(name + leaf) == other + leaf for leaf in leaves)

    def _file_bytes(self, name: str) -> int:
        source = self.sources.get(name)
        keys = [] if source is None else source.keys
        return sum(self._checkpoint.tensor(key).nbytes for _, key in keys)

    def _match(self) -> dict[str, Source]:
        """What fills each parameter. Tensors that fill none are noted, as in transformers."""
        mapping = get_model_conversion_mapping(self._model)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        base = self._model.base_model_prefix
        found: dict[str, Source] = {}
        strangers: list[str] = []
        for key in sorted(self._checkpoint.names, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, base, self.state)
            if name not in self.state:  # experts that are not put together, or named already
                alone, _ = rename_source_key(key, renamings, [], base, self.state)
                name, pattern = next(
                    ((one, None) for one in (alone, key) if one in self.state), (name, pattern)
                )
            if name not in self.state:
                strangers.append(name)
            elif pattern is None:
                found[name] = Source(name, None, [("", key)])
            else:
                converter = by_pattern[pattern]
                source = found.setdefault(name, Source(name, converter))
                source.keys.append((pattern, key))
                for other in converter.target_patterns[1:]:
                    found.setdefault(name.replace(converter.target_patterns[0], other), source)
        strangers = self._unless(strangers, self._may_be_unexpected())
        if strangers:
            self.notes.append(
                f"the checkpoint has tensors that {type(self._model).__name__} has no place for, "
                f"and they are left out: {_listing(strangers)}"
            )
        return found

    def _ties(self) -> dict[str, str]:
        tied: dict[str, str] = {}
        for target, origin in self._tied_names():
            here, there = self.sources.get(target), self.sources.get(origin)
            if there is None and here is not None:
                target, origin = origin, target
            elif here is not None and there is not None:
                if here.converter or there.converter:
                    continue
                one, other = (self._checkpoint.tensor(x.keys[0][1]) for x in (here, there))
                if one.shape != other.shape or not torch.equal(one, other):
                    continue  # the tensors know better than the config, as in transformers
            tied[target] = origin
        return tied

    def _tied_names(self) -> Iterator[tuple[str, str]]:
        """Tensors that are the same by the config: of layers of ours, each of theirs."""
        for target, origin in self._model.all_tied_weights_keys.items():
            here, there = (self._layers.get(x.removesuffix(".weight")) for x in (target, origin))
            if here is None or there is None:
                yield target, origin
                continue
            for leaf, slot in here.items():
                if there.get(leaf) == slot:
                    yield (
                        f"{target.removesuffix('weight')}{leaf}",
                        (f"{origin.removesuffix('weight')}{leaf}"),
                    )

    def _check(self) -> None:
        """Raises BrokenCheckpoint for parameters that nothing fills."""
        names = (
            name
            for name in self.state
            if self.tied.get(name, name) not in self.sources and not self.may_lack(name)
        )
        missing = self._unless(names, self._model._keys_to_ignore_on_load_missing)
        if missing:
            raise BrokenCheckpoint(
                f"the checkpoint lacks tensors of {type(self._model).__name__}: {_listing(missing)}"
            )

    def _may_be_unexpected(self) -> set[str]:
        """Patterns, as transformers has them for all models."""
        patterns = set(self._model._keys_to_ignore_on_load_unexpected or ())
        buffers = [name for name, _ in self._model.named_buffers()]
        if any(name.endswith("inv_freq") for name in buffers):
            patterns.add(r"rotary_emb\.inv_freq")
        if any(name.endswith("position_ids") for name in buffers):
            patterns.add(r"(^|\.)position_ids$")
        return patterns

    @staticmethod
    def _unless(names: Iterable[str], patterns: Iterable[str] | None) -> list[str]:
        allowed = list(patterns or ())
        return [name for name in names if not any(re.search(one, name) for one in allowed)]


def stored_layers(model: Any, checkpoint: Checkpoint) -> StoredLayers:
    """Return which layers of a model a checkpoint has, before any of them is replaced."""
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    state, base = model.state_dict(), model.base_model_prefix
    found: set[str] = set()
    quantized: set[str] = set()
    stacked: set[str] = set()
    for key in checkpoint.names:
        name, _ = rename_source_key(key, renamings, [], base, state)
        match = TENSOR.fullmatch(name)
        if match is None:
            continue
        layer = match[1]
        experts = re.sub(r"\.\d+\.\w+$", "", layer)
        found |= {layer, experts}
        if name.startswith(f"{layer}.gate_up_proj"):
            stacked.add(layer)
        if checkpoint.dtype(key) not in WIDE:
            quantized |= {layer, experts}
    return StoredLayers(frozenset(found), frozenset(quantized), frozenset(stacked))


def _state(
    model: Any, layers: Mapping[str, Layer], replaced: Iterable[str]
) -> dict[str, torch.Tensor]:
    """What is to be filled, without memory: the model's tensors, but for those of modules that are
    replaced, and those of the layers in their place."""
    prefixes = tuple(f"{name}." for name in replaced)
    found: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    state = {name: one for name, one in found.items() if not name.startswith(prefixes)}
    for name, layer in layers.items():
        for leaf, slot in layer.slots.items():
            shape = [max(0, n) for n in slot.shape]  # ANY is none of the model's to say
            state[f"{name}.{leaf}"] = torch.empty(shape, dtype=slot.dtype, device="meta")
    return state


def _listing(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def expert_names(model: Any) -> ExpertNames:
    """What checkpoints of this family call the linear layers of an expert."""
    found = ExpertNames()
    for one in get_model_conversion_mapping(model):
        leaves = [re.search(r"experts\.\*\.(\w+)\.weight$", x) for x in one.source_patterns]
        names = [leaf[1] for leaf in leaves if leaf is not None]
        if one.target_patterns[0].endswith("experts.gate_up_proj") and len(names) == 2:
            found = found._replace(gate=names[0], up=names[1])
        if one.target_patterns[0].endswith("experts.down_proj") and len(names) == 1:
            found = found._replace(down=names[0])
    return found

"""From the tensors of a checkpoint to the parameters of a model that was built without any.

The model is on the meta device; `fill` gives the parameters of one of its modules their numbers,
straight from the mapped files. So a caller can go through a model layer by layer and never hold
much more than it keeps, and a rank reads only its part of each tensor (`slices`).

What a checkpoint calls a parameter, and how several of its tensors become one (the experts of a
layer, say), is transformers' knowledge and comes from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from workers import memory
from workers.models.checkpoint import BrokenCheckpoint, Checkpoint
from workers.slices import Range, Slices, cut, within

RELEASE_BYTES = 2**22
"""Read pages of the files are let go after so many bytes."""
AROUND_BYTES = 2**20
"""What the kernel maps around a single number that is read, about."""
TRIM_BYTES = 2**26
"""Memory that was freed is given back after so many bytes that had to be converted: the allocator
is set to keep it, in pieces that fit nothing."""


@dataclass(slots=True)
class _Source:
    """The tensors of a checkpoint that make one parameter, or several."""

    name: str
    """Of the parameter; of several, the first."""
    converter: WeightConverter | None = None
    keys: list[tuple[str, str]] = field(default_factory=list)
    """The converter's pattern and the checkpoint's name; of a renamed tensor, just the latter."""


class Weights:
    """The parameters and buffers of a model, by what fills them."""

    def __init__(
        self, model: Any, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Raises BrokenCheckpoint where the names of model and checkpoint do not match."""
        self._model = model
        self._checkpoint = checkpoint
        self._device = device
        self._state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self._kept_wide = model._get_dtype_plan(dtype)
        self.notes: list[str] = []
        """What a person should know of the checkpoint."""
        self._prefixes = WeakKeyDictionary(
            {module: f"{name}." if name else "" for name, module in model.named_modules()}
        )
        self._sources = self._match()
        self._tied = self._ties()
        self._check()
        self._shared: dict[str, torch.Tensor] = {}
        self._spare: dict[str, torch.Tensor] = {}
        """Results of a conversion that nobody asked for yet."""
        self._read = self._converted_bytes = 0
        self.slices: dict[str, Slices] = {}
        """What of a parameter this rank holds, by its name; all of it where there is nothing."""

    def has(self, name: str) -> bool:
        """Whether the checkpoint has this parameter, or the one that it is tied to."""
        return self._tied.get(name, name) in self._sources

    def fill(self, module: nn.Module, *, borrow: bool = False) -> None:
        """Give all parameters and buffers of a module that are in the checkpoint their numbers.

        Borrowed ones may be views of the mapped file: to be copied, and not kept. Raises
        BrokenCheckpoint.
        """
        for one in module.modules():
            prefix = self._prefixes.get(one)
            if prefix is None:  # was put there by us, with its numbers
                continue
            own: Iterable[tuple[str, torch.Tensor]] = chain(
                one.named_parameters(recurse=False), one.named_buffers(recurse=False)
            )
            for leaf, old in list(own):
                if old.is_meta and prefix + leaf in self._state:
                    put(one, leaf, self._tensor(prefix + leaf, old, borrow))

    def _tensor(self, name: str, old: torch.Tensor, borrow: bool) -> torch.Tensor:
        origin = self._tied.get(name, name)
        if origin in self._shared:
            return self._shared[origin]
        source = self._sources.get(origin)
        if source is None:  # transformers says that it may be missing, and has initialized it
            return old
        slices = self.slices.get(name, {})
        made = (
            self._renamed(source, old, slices)
            if source.converter is None
            else self._converted(origin, source, old, slices)
        )
        dtype = self._dtype_of(name, old)
        if borrow:
            return self._lent(made, dtype)
        placed = self._copied(made, dtype)
        if origin in self._tied.values():
            self._shared[origin] = placed
        return placed

    def _lent(self, made: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """In this dtype, a view if it has it already."""
        self._note_read(made)
        placed = made.to(self._device, dtype)
        if placed.data_ptr() != made.data_ptr():
            self._converted_bytes += placed.nbytes
            if self._converted_bytes > TRIM_BYTES:
                memory.give_back()
                self._converted_bytes = 0
        return placed

    def _copied(self, made: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """In this dtype, in memory of its own; copied piece by piece if it is large."""
        placed = torch.empty(made.shape, dtype=dtype, device=self._device)
        if made.nbytes <= RELEASE_BYTES:
            self._note_read(made)
            return placed.copy_(made)
        n_pieces = -(-made.nbytes // RELEASE_BYTES)
        for into, piece in zip(placed.chunk(n_pieces), made.chunk(n_pieces), strict=True):
            self._note_read(piece)
            into.copy_(piece)
        return placed

    def _note_read(self, tensor: torch.Tensor) -> None:
        self._read += max(tensor.nbytes, AROUND_BYTES)
        if self._read > RELEASE_BYTES:
            self.release()

    def release(self) -> None:
        """Let go of the pages of the files that were read."""
        self._checkpoint.release()
        self._read = 0

    def _renamed(self, source: _Source, old: torch.Tensor, slices: Slices) -> torch.Tensor:
        (key,) = (key for _, key in source.keys)
        whole = self._checkpoint.tensor(key)
        self._expect(source.name, whole, old)
        return cut(whole, slices)

    def _converted(
        self, name: str, source: _Source, old: torch.Tensor, slices: Slices
    ) -> torch.Tensor:
        if name in self._spare:
            whole = self._spare.pop(name)
            self._expect(name, whole, old)
            return cut(whole, slices)
        assert source.converter is not None
        converter: Any = deepcopy(source.converter)
        parts = [(pattern, self._checkpoint.tensor(key)) for pattern, key in source.keys]
        cuts = _of_experts(converter, parts, slices)
        for at, (pattern, tensor) in enumerate(parts):
            if cuts is None:
                converter.add_tensor(source.name, source.keys[at][1], pattern, tensor)
            elif (part := cuts[at]) is not None:
                converter.add_tensor(source.name, source.keys[at][1], pattern, cut(tensor, part))
        try:
            made = converter.convert(source.name, model=self._model, config=self._model.config)
        except (RuntimeError, ValueError) as error:
            raise BrokenCheckpoint(f"{source.name} cannot be put together: {error}") from error
        found = {key: one[0] if isinstance(one, list) else one for key, one in made.items()}
        mine: torch.Tensor = found.pop(name)
        self._spare |= found
        if cuts is None:
            self._expect(name, mine, old)
            return cut(mine, slices)
        self._expect(name, mine, cut(old, slices))
        return mine

    @staticmethod
    def _expect(name: str, tensor: torch.Tensor, old: torch.Tensor) -> None:
        if tensor.shape != old.shape:
            raise BrokenCheckpoint(
                f"{name} is {list(tensor.shape)} in the checkpoint and {list(old.shape)} by the "
                "config: they are not of one model"
            )

    def _dtype_of(self, name: str, old: torch.Tensor) -> torch.dtype:
        for pattern, dtype in self._kept_wide.items():
            if re.search(pattern.replace("*", r".*"), name):
                return dtype  # type: ignore[no-any-return]
        return old.dtype

    def _match(self) -> dict[str, _Source]:
        """What fills each parameter. Tensors that fill none are noted, as in transformers."""
        mapping = get_model_conversion_mapping(self._model)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        base = self._model.base_model_prefix
        found: dict[str, _Source] = {}
        strangers: list[str] = []
        for key in sorted(self._checkpoint.names, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, base, self._state)
            if name not in self._state and key in self._state:
                name, pattern = key, None
            if name not in self._state:
                strangers.append(name)
            elif pattern is None:
                found[name] = _Source(name, None, [("", key)])
            else:
                converter = by_pattern[pattern]
                source = found.setdefault(name, _Source(name, converter))
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
        """Names whose numbers are another's, and whose."""
        tied: dict[str, str] = {}
        for target, origin in self._model.all_tied_weights_keys.items():
            here, there = self._sources.get(target), self._sources.get(origin)
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

    def _check(self) -> None:
        """Raises BrokenCheckpoint for parameters that nothing fills."""
        names = (name for name in self._state if self._tied.get(name, name) not in self._sources)
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


def put(module: nn.Module, leaf: str, tensor: torch.Tensor) -> None:
    """Replace a parameter or a buffer of a module."""
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _of_experts(
    converter: WeightConverter, parts: list[tuple[str, torch.Tensor]], slices: Slices
) -> list[Slices | None] | None:
    """For a parameter [experts, ...] made of a tensor for each expert, what of each tensor is
    needed for a slice of it (None: nothing); None where a slice has to be cut from the whole."""
    kinds = [type(one) for one in converter.operations]
    if kinds not in ([MergeModulelist], [MergeModulelist, Concatenate]):
        return None
    if any(getattr(one, "dim", at) != at for at, one in enumerate(converter.operations)):
        return None
    n_patterns = len(converter.source_patterns)
    if not slices or (n_patterns > 1) != (len(kinds) > 1):
        return None
    joined = 0
    """Where in the second dimension a pattern's tensors begin, once they lie side by side."""
    begins: dict[str, Range] = {}
    for pattern in converter.source_patterns:
        size = next(one.shape[0] for found, one in parts if found == pattern)
        begins[pattern] = Range(joined, joined + size)
        joined += size
    expert: dict[str, int] = {}
    wanted: list[Slices | None] = []
    for pattern, _ in parts:
        at = expert[pattern] = expert.get(pattern, -1) + 1
        if 0 in slices and not any(one.start <= at < one.end for one in slices[0]):
            wanted.append(None)
            continue
        own = {dim - 1: ranges for dim, ranges in slices.items() if dim}
        if 0 in own and n_patterns > 1:
            own[0] = within(own[0], begins[pattern])
        wanted.append(own)
    return wanted


def _listing(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

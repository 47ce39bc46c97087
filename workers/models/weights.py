"""From the tensors of a checkpoint to the parameters of a model that was built without any.

The model is on the meta device; `fill` gives the parameters of one of its modules their numbers,
straight from the mapped files. So a caller can go through a model layer by layer and never hold
much more than it keeps, and a rank reads only its part of each tensor (`slices`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from workers import memory
from workers.layers.layer import Layer
from workers.models.checkpoint import BrokenCheckpoint, Checkpoint
from workers.models.matching import Matching, Source
from workers.quantization.method import ANY, Misfit, Slot
from workers.slices import Range, Slices, cut, within

RELEASE_BYTES = 2**22
"""Read pages of the files are let go after so many bytes."""
AROUND_BYTES = 2**20
"""What the kernel maps around a single number that is read, about."""
TRIM_BYTES = 2**26
"""Memory that was freed is given back after so many bytes that had to be converted: the allocator
is set to keep it, in pieces that fit nothing."""


class Weights:
    """The parameters and buffers of a model, by what fills them."""

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        layers: Mapping[str, Layer],
        replaced: Iterable[str],
    ) -> None:
        """`layers` are those of ours, by name, which are not in the model yet but in the place of
        its modules `replaced`.

        Raises BrokenCheckpoint where the names of model and checkpoint do not match.
        """
        self._model = model
        self._checkpoint = checkpoint
        self._device = device
        self.matching = Matching(model, checkpoint, layers, replaced)
        self.notes = self.matching.notes
        """What a person should know of the checkpoint."""
        self._kept_wide = model._get_dtype_plan(dtype)
        self._prefixes = WeakKeyDictionary(
            {
                module: f"{name}." if name else ""
                for name, module in chain(model.named_modules(), layers.items())
            }
        )
        self._shared: dict[str, torch.Tensor] = {}
        self._spare: dict[str, torch.Tensor] = {}
        """Results of a conversion that nobody asked for yet."""
        self._read = self._converted_bytes = 0
        self.slices: dict[str, Slices] = {}
        """What of a parameter this rank holds, by its name; all of it where there is nothing."""

    def fill(
        self,
        module: nn.Module,
        *,
        borrow: bool = False,
        without: Collection[nn.Module] = frozenset(),
    ) -> None:
        """Give all parameters and buffers of a module that are in the checkpoint their numbers, but
        for those of the modules `without`.

        Borrowed ones may be views of the mapped file: to be copied, and not kept. Raises
        BrokenCheckpoint.
        """
        for one in module.modules():
            prefix = self._prefixes.get(one)
            # Those without a prefix were put there by us, with their numbers.
            if prefix is None or one in without:
                continue
            if isinstance(one, Layer):
                if not one.loaded:
                    self._load(one, prefix, borrow)
                continue
            own: Iterable[tuple[str, torch.Tensor]] = chain(
                one.named_parameters(recurse=False), one.named_buffers(recurse=False)
            )
            for leaf, old in list(own):
                if old.is_meta and prefix + leaf in self.matching.state:
                    put(one, leaf, self._tensor(prefix + leaf, old, borrow))

    def _load(self, layer: Layer, prefix: str, borrow: bool) -> None:
        names = {leaf: prefix + leaf for leaf in layer.wanted}
        found = {
            leaf: self._tensor(name, self.matching.state[name], borrow)
            for leaf, name in names.items()
            if not (self.matching.may_lack(name) and self.matching.lacks(name))
        }
        try:
            layer.load(found)
        except Misfit as error:
            raise BrokenCheckpoint(f"{prefix.removesuffix('.')}: {error}") from error

    def _tensor(self, name: str, old: torch.Tensor, borrow: bool) -> torch.Tensor:
        origin = self.matching.tied.get(name, name)
        if origin in self._shared:
            return self._shared[origin]
        source = self.matching.sources.get(origin)
        if source is None:  # transformers says that it may be missing, and has initialized it
            return old
        slices = self.slices.get(name, {})
        made = (
            self._renamed(source, old, slices)
            if source.converter is None
            else self._converted(origin, source, old, slices)
        )
        dtype = made.dtype if name in self.matching.as_in_file else self._dtype_of(name, old)
        if borrow:
            return self._lent(made, dtype)
        placed = self._copied(made, dtype)
        if origin in self.matching.tied.values():
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

    def _renamed(self, source: Source, old: torch.Tensor, slices: Slices) -> torch.Tensor:
        (key,) = (key for _, key in source.keys)
        whole = self._checkpoint.tensor(key)
        slot = self.matching.slots.get(source.name)
        if slot is None:
            self._expect(source.name, whole, old)
        else:
            _fit(source.name, whole, slot)
        return cut(whole, slices)

    def _converted(
        self, name: str, source: Source, old: torch.Tensor, slices: Slices
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
            given = _WithShapes(self._model, self.matching.state)
            made = converter.convert(source.name, model=given, config=self._model.config)
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


class _WithShapes:
    """A model for transformers' conversions, some of which look at the shape of what they make:
    layers of ours do not have it in the same place."""

    def __init__(self, model: Any, state: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_parameter(self, name: str) -> torch.Tensor:
        return self._state[name]


def _fit(name: str, tensor: torch.Tensor, slot: Slot) -> None:
    """Raises BrokenCheckpoint for a tensor that a layer of ours cannot have there."""
    shapes = (slot.shape, *slot.others)
    found = tuple(tensor.shape)
    fits = any(
        len(found) == len(shape) and all(n in (m, ANY) for m, n in zip(found, shape, strict=True))
        for shape in shapes
    )
    if fits and (not slot.stored or tensor.dtype in slot.stored):
        return
    wanted = " or ".join(str([n if n != ANY else "any" for n in shape]) for shape in shapes)
    is_kind, wanted_kind = "", ""
    if slot.stored:
        is_kind = f"{_name_of(tensor.dtype)} "
        wanted_kind = " or ".join(map(_name_of, slot.stored)) + " "
    raise BrokenCheckpoint(
        f"{name} is {is_kind}{list(found)} in the checkpoint and {wanted_kind}{wanted} by the "
        "config: they are not of one model"
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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

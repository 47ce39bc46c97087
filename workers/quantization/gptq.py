"""GPTQ: codes of 2, 3, 4 or 8 bits, a scale and a zero point for each group of inputs.

qweight [k * bits / 32, n] holds the codes of a column one behind the other, over the ends of words;
qzeros [groups, n * bits / 32] those of a row. Files of format `gptq` have the zero points less 1,
those of `gptq_v2` as they are. With `desc_act` the group of each input is in g_idx.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups, bytes_of, unpack
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    group_index,
    in_units,
    own_bias,
    own_groups,
    own_size,
)
from workers.quantization.method import Cut, Kind, Size, Slot, Tensors
from workers.slices import Slices
from workers.slices import cut as cut_tensor

FORMATS = ("gptq", "gptq_v2")
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A word with a 1 for each code."""


class GPTQMethod(GroupedMethod):
    """The settings of one checkpoint, or of a layer for which it has others."""

    name = "gptq"
    in_integers = True
    flags = frozenset({"gptq", "marlin"})

    def __init__(self, bits: int, group: int, *, less_one: bool, config: Mapping[str, Any]) -> None:
        """`group` is -1 where a column is one, `less_one` whether zero points are less 1."""
        self._bits, self._group, self._less_one = bits, group, less_one
        self._config = config
        self._dynamic = [
            (re.compile(pattern.removeprefix("+:")), changed)
            for pattern, changed in (config.get("dynamic") or {}).items()
        ]
        self._variants: dict[tuple[int, int], GPTQMethod] = {(bits, group): self}
        """By bits and group, so that layers of the same settings are merged."""
        self._unit = 32 // math.gcd(32, bits)
        """Codes that fill whole words."""
        self.columns = math.lcm(group, self._unit) if group > 0 else self._unit
        self.inputs_per_scale = max(group, 0)
        self.reorders = bool(config.get("desc_act"))

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GPTQMethod:
        stored = config.get("checkpoint_format") or config.get("format") or "gptq"
        if config.get("is_marlin_format"):
            stored = "marlin"
        if stored not in FORMATS:
            raise UnsupportedModel(
                f"its weights are in GPTQ's format {stored}; served are {', '.join(FORMATS)}: use "
                "a checkpoint in one of these"
            )
        return cls._with(config, config.get("bits"), config.get("group_size", 128), stored)

    @classmethod
    def _with(cls, config: Mapping[str, Any], bits: Any, group: Any, stored: str) -> GPTQMethod:
        if bits not in (2, 3, 4, 8):
            raise UnsupportedModel(
                f"its weights are in GPTQ of {bits} bits; served are 2, 3, 4 and 8"
            )
        return cls(bits, int(group), less_one=stored == "gptq", config=config)

    def describe(self) -> str:
        inputs = f"groups of {self._group} inputs" if self._group > 0 else "columns"
        others = ", other layers in other ways" if self._dynamic else ""
        return f"gptq, {self._bits} bits in {inputs}{others}"

    def for_layer(self, name: str, kind: Kind) -> GPTQMethod:
        for pattern, changed in self._dynamic:
            # What begins with -: is of layers that are plain.
            if pattern.match(name):
                return self._changed(changed)
        return self

    def _changed(self, changed: Mapping[str, Any]) -> GPTQMethod:
        bits, group = changed.get("bits", self._bits), changed.get("group_size", self._group)
        if (bits, group) not in self._variants:
            stored = "gptq" if self._less_one else "gptq_v2"
            self._variants[bits, group] = self._with(self._config, bits, group, stored)
        return self._variants[bits, group]

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n, k, bias = size
        if k % self._unit:
            raise UnsupportedModel(f"GPTQ of {self._bits} bits packs {self._unit} inputs, of {k}")
        n_groups, integers = self._n_groups(k), (torch.int32,)
        slots = {
            "qweight": Slot((k * self._bits // 32, n), stored=integers),
            "qzeros": Slot((n_groups, -(-n * self._bits // 32)), stored=integers),
            "scales": Slot((n_groups, n), stored=(torch.float16, torch.bfloat16, torch.float32)),
            "g_idx": Slot((k,), stored=(torch.int32, torch.int64), optional=True),
        }
        return slots | ({"bias": Slot((n,), dtype)} if bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        outputs, inputs = cut
        words = in_units(inputs, self._unit, self._unit * self._bits // 32)
        found: Slices = {} if words is None else {0: words}
        found |= {} if outputs is None else {1: outputs}
        return {"qweight": found} | ({} if outputs is None else {"bias": {0: outputs}})

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        packed = bytes_of(tensors["qweight"].t())
        zeros: torch.Tensor | None = self._zeros(tensors["qzeros"], size.outputs).t()
        if zeros is not None and bool((zeros == 2 ** (self._bits - 1)).all()):
            zeros = None
        whole = Groups(tensors["scales"].t(), zeros, self._size(size.inputs))
        index = group_index(tensors.get("g_idx"), size.inputs, whole.size)
        if index is None:
            groups = own_groups(whole, size, cut)
        else:
            # A rank may have inputs of any group.
            groups = own_groups(whole, size, Cut(cut.outputs))
            if cut.inputs is not None:
                index = cut_tensor(index, {0: cut.inputs})
        codes = Codes(packed, own_size(size, cut).inputs, self._bits)
        return GroupedWeight(codes, groups, dtype, own_bias(tensors.get("bias")), index)

    def _zeros(self, words: torch.Tensor, n: int) -> torch.Tensor:
        """uint8 [groups, n].

        1 was taken from whole words, so that a zero point of 0 borrowed from the next one; of 3
        bits, which lie across words, from each by itself.
        """
        if not self._less_one:
            return unpack(bytes_of(words), self._bits, n)
        if self._bits in ONES:
            return unpack(bytes_of(words + ONES[self._bits]), self._bits, n)
        return (unpack(bytes_of(words), self._bits, n) + 1) & ((1 << self._bits) - 1)

    def _size(self, k: int) -> int:
        return self._group if self._group > 0 else k

    def _n_groups(self, k: int) -> int:
        return -(-k // self._size(k))

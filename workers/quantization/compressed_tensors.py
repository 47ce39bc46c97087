"""compressed-tensors: groups of layers, each quantized in its own way.

- `pack-quantized`: integers of 1 to 8 bits, as codes with 0 in their middle, in int32
  weight_packed [n, k * bits / 32]; weight_scale, weight_shape, and of asymmetric ones
  weight_zero_point, packed along the outputs.
- `int-quantized`, `float-quantized`, `naive-quantized`: int8 or e4m3 weight [n, k], weight_scale
  and weight_zero_point.

Scales are of the whole weight, of rows, of groups of inputs or of blocks. How activations would be
quantized is not looked at: they keep their dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, bytes_of, unpack
from workers.quantization.fp8 import SCALES, e4m3_codes, fp8_slots, plain_cut, row_groups
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    group_index,
    in_units,
    own_bias,
    own_group,
    own_groups,
    own_size,
)
from workers.quantization.method import Cut, Kind, Misfit, Size, Slot, Tensors
from workers.slices import Slices
from workers.slices import cut as cut_tensor

PACKED = "pack-quantized"
FORMATS = (PACKED, "int-quantized", "float-quantized", "naive-quantized", "dense")
SCOPES = ("tensor", "channel", "group", "block")
OFFLINE = {"weight_input", "weight_output"}
"""Where transforms are in the weights already."""
UNUSED = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of one group of layers are quantized."""

    format: str
    bits: int
    is_float: bool
    symmetric: bool
    group: int
    """Inputs of a scale; 0: all."""
    block: tuple[int, int] | None
    """Outputs and inputs of a scale."""
    reorders: bool
    """Whether layers may have their inputs in an order of their own."""

    @classmethod
    def of(cls, given: Mapping[str, Any], stored: str) -> Scheme:
        bits, kind = given.get("num_bits", 8), str(given.get("type", "int")).lower()
        group = given.get("group_size") or 0
        scope = given.get("strategy") or (
            "group" if group > 0 else "channel" if group else "tensor"
        )
        block: Any = given.get("block_structure")
        if isinstance(block, str):
            block = [int(n) for n in block.split("x")]
        if stored not in FORMATS or scope not in SCOPES:
            raise UnsupportedModel(
                f"its weights are in compressed-tensors' format {stored}, with scales of a {scope};"
                f" served are {', '.join(FORMATS)}, with scales of {', '.join(SCOPES)}"
            )
        if (kind == "float" and (bits != 8 or stored == PACKED)) or not 1 <= bits <= 8:
            raise UnsupportedModel(
                f"its weights are {kind} of {bits} bits in compressed-tensors' format {stored}; "
                "served are int of up to 8 bits and float of 8"
            )
        return cls(
            stored,
            bits,
            kind == "float",
            bool(given.get("symmetric", True)),
            group if scope == "group" else 0,
            (block[0], block[1]) if scope == "block" else None,
            given.get("actorder") not in (None, False, "static", "weight"),
        )

    def __str__(self) -> str:
        scope = f" in groups of {self.group} inputs" if self.group else ""
        scope = f" in blocks of {self.block[0]}x{self.block[1]}" if self.block else scope
        return f"{self.format}, {'float' if self.is_float else 'int'} of {self.bits} bits{scope}"


class CompressedTensorsMethod(GroupedMethod):
    """The settings of one group of layers of a checkpoint, which has the others too."""

    name = "compressed-tensors"
    flags = frozenset({"compressed-tensors"})

    def __init__(self, scheme: Scheme, others: list[tuple[list[str], Scheme | None]]) -> None:
        """`others` are all groups, by the layers that they are for; None: those are plain."""
        self._scheme, self._groups = scheme, others
        self._methods = {scheme: self}
        inputs = scheme.group or (scheme.block[1] if scheme.block else 1)
        self._unit = 32 // math.gcd(32, scheme.bits) if scheme.format == PACKED else 1
        """Codes that fill whole words."""
        self.columns = math.lcm(inputs, self._unit)
        self.inputs_per_scale = scheme.group or (scheme.block[1] if scheme.block else 0)
        self.reorders = scheme.reorders
        self.in_integers = any(one is not None and not one.is_float for _, one in others)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CompressedTensorsMethod:
        sparse = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparse != "dense":
            raise UnsupportedModel(f"its weights are sparse ({sparse}), which is not served")
        transforms = (config.get("transform_config") or {}).get("config_groups") or {}
        places = {of.get("location") for one in transforms.values() for of in one.get("apply", ())}
        if online := sorted(map(str, places - OFFLINE)):
            raise UnsupportedModel(
                f"its transform_config has {', '.join(online)} multiplied with matrices (as QuIP "
                "and SpinQuant have it) while the model runs, which is not served"
            )
        groups: list[tuple[list[str], Scheme | None]] = []
        for one in (config.get("config_groups") or {}).values():
            stored = one.get("format") or config.get("format") or "dense"
            weights = one.get("weights")
            scheme = None if weights is None else Scheme.of(weights, stored)
            targets = list(one.get("targets") or ())
            for target in targets:
                re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
            groups.append((targets, scheme))
        schemes = [scheme for _, scheme in groups if scheme is not None]
        if not schemes:
            raise UnsupportedModel("its quantization_config has no config_groups with weights")
        return cls(schemes[0], groups)

    def describe(self) -> str:
        schemes = dict.fromkeys(str(scheme) for _, scheme in self._groups if scheme is not None)
        return f"compressed-tensors ({'; '.join(schemes)})"

    def for_layer(self, name: str, kind: Kind) -> CompressedTensorsMethod | None:
        if kind == "embedding":
            return None
        if len(self._groups) == 1:
            return self
        # The most special target counts: a name, then an expression, then a class.
        of_experts = f"{name}.0.gate_proj" if kind == "experts" else name
        found = [
            (target.startswith("re:") + 2 * (target == "Linear"), scheme)
            for targets, scheme in self._groups
            for target in targets
            if target in ("Linear", name)
            or (target.startswith("re:") and re.match(target.removeprefix("re:"), of_experts))
        ]
        if not found:
            raise UnsupportedModel(f"{name} is of none of its config_groups, and not plain either")
        scheme = min(found, key=lambda one: one[0])[1]
        if scheme is None:
            return None
        if scheme not in self._methods:
            self._methods[scheme] = CompressedTensorsMethod(scheme, self._groups)
        return self._methods[scheme]

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n, k, bias = size
        scheme = self._scheme
        if scheme.is_float:
            slots = fp8_slots(size, self._tile)
            slots["weight_scale"] = slots["weight_scale"]._replace(optional=False)
            del slots["weight_scale_inv"]
        else:
            scales = self._scale_shapes(n, k)
            packed_zeros = (-(-n * scheme.bits // 32), scales[0][-1] if scales[0] else 1)
            zeros = Slot(
                packed_zeros if scheme.format == PACKED else scales[0],
                stored=(torch.int32, torch.int8),
                others=scales,
                optional=scheme.symmetric,
            )
            slots = {
                "weight_scale": Slot(scales[0], stored=SCALES, others=scales[1:]),
                "weight_zero_point": zeros,
            }
            if scheme.format == PACKED:
                words = -(-k * scheme.bits // 32)
                slots |= {
                    "weight_packed": Slot((n, words), stored=(torch.int32,)),
                    "weight_shape": Slot((2,), stored=(torch.int64, torch.int32), optional=True),
                    "weight_g_idx": Slot((k,), stored=(torch.int32,), optional=True),
                }
            else:
                slots["weight"] = Slot((n, k), stored=(torch.int8,))
        slots |= {name: Slot((), others=((1,), (1, 1)), optional=True) for name in UNUSED}
        return slots | ({"bias": Slot((n,), dtype)} if bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        own_group(self._tile[1] if self._tile else size.inputs, size, cut)
        slices = plain_cut(cut)
        if self._scheme.format == PACKED:
            words = in_units(cut.inputs, self._unit, self._unit * self._scheme.bits // 32)
            packed: Slices = {} if cut.outputs is None else {0: cut.outputs}
            packed |= {} if words is None else {1: words}
            slices["weight_packed"] = packed
            del slices["weight"]
        return slices

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        scheme, k = self._scheme, own_size(size, cut).inputs
        zeros = None if scheme.symmetric else self._zeros(tensors["weight_zero_point"], size)
        groups = row_groups(tensors["weight_scale"], size, self._tile, zeros)
        index = None
        if scheme.format == PACKED:
            shape = tensors.get("weight_shape")
            if shape is not None and shape.tolist() != [size.outputs, size.inputs]:
                raise Misfit(
                    f"its weight_shape is {shape.tolist()}, and should be {list(size[:2])}"
                )
            packed = bytes_of(tensors["weight_packed"]).clone()
            codes = Codes(packed, k, scheme.bits)
            given = tensors.get("weight_g_idx")
            if scheme.group and given is not None and bool((given >= 0).all()):
                index = group_index(given, size.inputs, scheme.group)
        elif scheme.is_float:
            codes = e4m3_codes(tensors["weight"], own_size(size, cut))
        else:
            # As packed ones have it: 0 is in the middle.
            codes = Codes(tensors["weight"].contiguous().view(torch.uint8) ^ 128, k)
        own = own_groups(groups, size, cut if index is None else Cut(cut.outputs))
        if index is not None and cut.inputs is not None:
            index = cut_tensor(index, {0: cut.inputs})
        return GroupedWeight(codes, own, dtype, own_bias(tensors.get("bias")), index)

    @property
    def _tile(self) -> tuple[int, int] | None:
        """Outputs and inputs of a scale; None: there is one a row, or one."""
        return (1, self._scheme.group) if self._scheme.group else self._scheme.block

    def _scale_shapes(self, n: int, k: int) -> tuple[tuple[int, ...], ...]:
        if self._tile:
            return ((-(-n // self._tile[0]), -(-k // self._tile[1])),)
        return ((n, 1), (), (1,), (1, 1), (n,))

    def _zeros(self, given: torch.Tensor, size: Size) -> torch.Tensor:
        """Zero points as codes: uint8, of the shape of the scales."""
        bits = self._scheme.bits
        if given.dtype == torch.int32 and self._scheme.format == PACKED:
            return unpack(bytes_of(given.t()), bits, size.outputs).t()
        middle = 128 if self._scheme.format != PACKED else 2 ** (bits - 1)
        return (given.to(torch.int16) + middle).to(torch.uint8)

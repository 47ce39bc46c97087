"""bitsandbytes: nf4 and fp4, which are tables of 16 values, and int8 with a scale for each row.

Of 4 bits: the weight [n, k] is flattened, two to a byte, the first in the high nibble; absmax has
the scale of each block of it. Where it is quantized itself ("double quantization"), it is
nested_quant_map[absmax] * nested_absmax + offset, by blocks of 256. What the blocks are is in a
tensor that holds JSON. Of 8 bits: w = code * SCB / 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups
from workers.quantization.fp8 import plain_cut, row_groups
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    in_units,
    own_bias,
    own_group,
    own_groups,
    own_size,
)
from workers.quantization.method import ANY, Cut, Misfit, Size, Slot, Tensors
from workers.slices import Slices
from workers.slices import cut as cut_tensor

TYPES = ("nf4", "fp4")
STATE = "weight.quant_state.bitsandbytes__"
BLOCK = 64
"""Numbers of a scale, unless a layer says something else."""
IN_ROWS = 0
"""`weight_format` of int8: others are those of old GPUs' kernels."""
STORAGE = (torch.uint8, torch.int8, torch.bfloat16, torch.float16, torch.float32)
"""What packed bytes may be called."""


class BitsAndBytesMethod(GroupedMethod):
    """The settings of one checkpoint."""

    name = "bitsandbytes"

    def __init__(self, kind: str) -> None:
        """`kind` is one of TYPES, or int8."""
        self._kind = kind
        four = kind in TYPES
        self.in_integers = not four
        self.flags = frozenset(
            {"bitsandbytes", f"bitsandbytes-{kind}"} if four else {"bitsandbytes"}
        )
        self.columns = BLOCK if four else 1
        self.inputs_per_scale = BLOCK if four else 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BitsAndBytesMethod:
        if config.get("load_in_8bit") or config.get("_load_in_8bit"):
            return cls("int8")
        kind = str(config.get("bnb_4bit_quant_type", "fp4"))
        if kind not in TYPES:
            raise UnsupportedModel(
                f"its weights are in bitsandbytes' {kind}; served are {', '.join(TYPES)} and int8"
            )
        return cls(kind)

    def describe(self) -> str:
        return f"bitsandbytes {self._kind}" + (", 4 bits" if self._kind in TYPES else "")

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n, k, bias = size
        if self._kind == "int8":
            slots = {
                "weight": Slot((n, k), stored=(torch.int8,)),
                "SCB": Slot((n,), stored=(torch.float32, torch.float16)),
                "weight_format": Slot((), optional=True),
            }
        else:
            slots = {
                "weight": Slot((ANY, 1), stored=STORAGE, others=((1, ANY),)),
                "weight.absmax": Slot((ANY,), stored=(torch.float32, torch.uint8)),
                "weight.quant_map": Slot((16,), stored=(torch.float32,)),
                "weight.nested_absmax": Slot((ANY,), stored=(torch.float32,), optional=True),
                "weight.nested_quant_map": Slot((256,), stored=(torch.float32,), optional=True),
            }
            slots |= {
                f"{STATE}{kind}": Slot((ANY,), stored=(torch.uint8,), optional=True)
                for kind in TYPES
            }
        return slots | ({"bias": Slot((n,), dtype)} if bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        if self._kind == "int8":
            return plain_cut(cut)
        in_units(cut.inputs, 2)
        own_group(math.gcd(BLOCK, size.inputs), size, cut)
        return {} if cut.outputs is None else {"bias": {0: cut.outputs}}

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        k, bias = own_size(size, cut).inputs, own_bias(tensors.get("bias"))
        if self._kind == "int8":
            stored = tensors.get("weight_format")
            if stored is not None and int(stored) != IN_ROWS:
                raise Misfit(f"its weight_format is {int(stored)}; served is {IN_ROWS}, of rows")
            codes = Codes(tensors["weight"].contiguous().view(torch.uint8) ^ 128, k)
            scales = row_groups(tensors["SCB"].float() / 127, size, None)
            return GroupedWeight(codes, own_groups(scales, size, cut), dtype, bias)
        state = _state(tensors, size)
        # Seen as rows, though blocks may run on from one to the next.
        packed = tensors["weight"].contiguous().view(torch.uint8).flatten()
        if packed.numel() * 2 != size.outputs * size.inputs or size.inputs % 2:
            raise Misfit(
                f"its weight has {packed.numel()} bytes, and {list(size[:2])} of 4 bits take "
                f"{size.outputs * size.inputs / 2:g}"
            )
        own: Slices = {} if cut.outputs is None else {0: cut.outputs}
        halves = in_units(cut.inputs, 2)
        own |= {} if halves is None else {1: halves}
        rows = cut_tensor(packed.view(size.outputs, -1), own)
        groups = own_groups(_groups(tensors, state, size), size, cut)
        table = tensors["weight.quant_map"].clone()
        codes = Codes(((rows >> 4) | (rows << 4)).contiguous(), k, 4, table)
        return GroupedWeight(codes, groups, dtype, bias)


def _state(tensors: Tensors, size: Size) -> Mapping[str, Any]:
    """What the layer says of itself. Raises Misfit."""
    found = next((tensors[STATE + kind] for kind in TYPES if STATE + kind in tensors), None)
    if found is None:
        raise Misfit(f"it has no {STATE}nf4, nor one of fp4")
    try:
        state = json.loads(bytes(found.tolist()))
        shape = list(state["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise Misfit(f"its quant_state cannot be read: {error}") from error
    if shape != list(size[:2]):
        raise Misfit(f"its quant_state is of shape {shape}, and should be of {list(size[:2])}")
    return state  # type: ignore[no-any-return]


def _groups(tensors: Tensors, state: Mapping[str, Any], size: Size) -> Groups:
    """The scales of the whole layer, float32. Raises Misfit."""
    scales, block = tensors["weight.absmax"], int(state.get("blocksize", BLOCK))
    n_blocks = -(-size.outputs * size.inputs // block)
    if len(scales) != n_blocks:
        raise Misfit(
            f"its weight.absmax has {len(scales)} numbers, and there are {n_blocks} blocks of "
            f"{block}"
        )
    if scales.dtype == torch.uint8:
        outer, table = tensors.get("weight.nested_absmax"), tensors.get("weight.nested_quant_map")
        wide = int(state.get("nested_blocksize", 256))
        if outer is None or table is None or len(outer) != -(-n_blocks // wide):
            raise Misfit("its weight.absmax is quantized, and the scales of that do not fit")
        each = outer.repeat_interleave(wide)[:n_blocks]
        scales = table[scales.int()] * each + float(state.get("nested_offset", 0.0))
    group = math.gcd(block, size.inputs)
    rows = scales.float().repeat_interleave(block // group)
    return Groups(rows[: size.outputs * size.inputs // group].view(size.outputs, -1), None, group)

"""GGUF: llama.cpp's blocks of 32 or 256 weights of a row, as rows of bytes.

The tensor of a layer is `weight`, uint8 [n, bytes], and the checkpoint's settings say in which type
of block each is. A weight is code * scale + minimum, or (code - half of all codes) * scale. In the
K-quants scales and minimums are small integers, times a factor for each block. Products of the two
are exact in float32, and so weights are what llama.cpp's own Python package dequantizes, bit for
bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups, pack
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    own_bias,
    own_size,
    packed_codes,
)
from workers.quantization.method import (
    Cut,
    Kernel,
    Kind,
    Prepare,
    QuantMethod,
    Size,
    Slot,
    Tensors,
)
from workers.slices import Range, Slices

VALUES = 2**20
"""Weights that are read at a time."""


class Parts(NamedTuple):
    """Blocks [n, blocks], taken apart."""

    codes: torch.Tensor
    """uint8 [n, blocks, inputs]."""
    scales: torch.Tensor
    """float16, or int8 that goes with factors: [n, blocks, groups]."""
    minimums: torch.Tensor | None = None
    """As scales."""
    factors: torch.Tensor | None = None
    """float16 [n, blocks, 1]."""
    minimum_factors: torch.Tensor | None = None


def _halves(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at this byte of each block: [n, blocks, 1]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)


def _shifted(given: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes [..., m] -> the codes of so many bits in them [..., 8 / bits, m], the lowest first."""
    mask = (1 << bits) - 1
    return torch.stack([(given >> at) & mask for at in range(0, 8, bits)], dim=-2)


def _of_32(bits: int, has_minimum: bool) -> Callable[[torch.Tensor], Parts]:
    """What takes blocks of 32 apart: scale, minimum, fifth bits, and nibbles, of which the lower
    ones are the first 16 codes."""

    def read(blocks: torch.Tensor) -> Parts:
        at = 4 if has_minimum else 2
        minimums = _halves(blocks, 2) if has_minimum else None
        if bits == 8:
            return Parts(blocks[..., at:] ^ 0x80, _halves(blocks, 0), minimums)
        high = None
        if bits == 5:
            eights = _shifted(blocks[..., at : at + 4], 1)  # a byte has eight codes in order
            high, at = eights.transpose(-1, -2).flatten(-2), at + 4
        codes = _shifted(blocks[..., at:], 4).flatten(-2)
        return Parts(codes if high is None else codes | high << 4, _halves(blocks, 0), minimums)

    return read


def _steps(given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 12 bytes of Q4_K and Q5_K -> eight scales and eight minimums of 6 bits."""
    first, second, third = given.split(4, dim=-1)
    scales = torch.cat((first & 63, (third & 15) | (first >> 6) << 4), dim=-1)
    minimums = torch.cat((second & 63, (third >> 4) | (second >> 6) << 4), dim=-1)
    return scales.view(torch.int8), minimums.view(torch.int8)


def _with_minimums(
    codes: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor, blocks: torch.Tensor, at: int
) -> Parts:
    """K-quants have the factors of both at this byte; that of the minimums is subtracted."""
    return Parts(codes.flatten(2), scales, minimums, _halves(blocks, at), -_halves(blocks, at + 2))


def _q2_k(blocks: torch.Tensor) -> Parts:
    steps, codes = blocks[..., :16], blocks[..., 16:80].unflatten(-1, (2, 32))
    scales, minimums = (steps & 15).view(torch.int8), (steps >> 4).view(torch.int8)
    return _with_minimums(_shifted(codes, 2), scales, minimums, blocks, 80)


def _q3_k(blocks: torch.Tensor) -> Parts:
    high = _shifted(blocks[..., :32], 1).flatten(2)
    codes = _shifted(blocks[..., 32:96].unflatten(-1, (2, 32)), 2).flatten(2) | high << 2
    low = _shifted(blocks[..., 96:104], 4).flatten(2)
    scales = low | _shifted(blocks[..., 104:108], 2).flatten(2) << 4
    return Parts(codes, scales.view(torch.int8) - 32, None, _halves(blocks, 108))


def _q4_k(blocks: torch.Tensor) -> Parts:
    codes = _shifted(blocks[..., 16:].unflatten(-1, (4, 32)), 4)
    return _with_minimums(codes, *_steps(blocks[..., 4:16]), blocks, 0)


def _q5_k(blocks: torch.Tensor) -> Parts:
    high = _shifted(blocks[..., 16:48], 1).flatten(2)
    codes = _shifted(blocks[..., 48:].unflatten(-1, (4, 32)), 4).flatten(2)
    return _with_minimums(codes | high << 4, *_steps(blocks[..., 4:16]), blocks, 0)


def _q6_k(blocks: torch.Tensor) -> Parts:
    low = _shifted(blocks[..., :128].unflatten(-1, (2, 64)), 4).flatten(2)
    high = _shifted(blocks[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(2)
    scales = blocks[..., 192:208].contiguous().view(torch.int8)
    return Parts(low | high << 4, scales, None, _halves(blocks, 208))


@dataclass(frozen=True, slots=True)
class Block:
    """A type of block."""

    name: str
    inputs: int
    bytes: int
    bits: int
    """Of a code."""
    group: int
    """Inputs of a scale."""
    read: Callable[[torch.Tensor], Parts]
    """uint8 [n, blocks, bytes] -> its parts."""


BLOCKS = {
    one.name: one
    for one in (
        Block("Q4_0", 32, 18, 4, 32, _of_32(4, has_minimum=False)),
        Block("Q4_1", 32, 20, 4, 32, _of_32(4, has_minimum=True)),
        Block("Q5_0", 32, 22, 5, 32, _of_32(5, has_minimum=False)),
        Block("Q5_1", 32, 24, 5, 32, _of_32(5, has_minimum=True)),
        Block("Q8_0", 32, 34, 8, 32, _of_32(8, has_minimum=False)),
        Block("Q2_K", 256, 84, 2, 16, _q2_k),
        Block("Q3_K", 256, 110, 3, 16, _q3_k),
        Block("Q4_K", 256, 144, 4, 32, _q4_k),
        Block("Q5_K", 256, 176, 5, 32, _q5_k),
        Block("Q6_K", 256, 210, 6, 16, _q6_k),
    )
}
"""By llama.cpp's names."""


class GGUFMethod(GroupedMethod):
    """One type of block; a file has several."""

    name = "gguf"
    in_integers = True
    flags = frozenset({"gguf"})

    def __init__(self, block: Block, types: Mapping[str, str], widened: Sequence[str] = ()) -> None:
        """`types` are those of all layers, by their names; the tensors that were `widened` to
        bfloat16 were in these."""
        self._block, self._types, self._widened = block, types, widened
        self._methods = {block.name: self}
        self.columns, self.inputs_per_scale = block.inputs, block.group

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GGUFMethod:
        types: Mapping[str, str] = config.get("types") or {}
        unknown = sorted(set(types.values()) - BLOCKS.keys())
        if unknown or not types:
            raise UnsupportedModel(
                f"its weights are in GGUF's blocks {', '.join(unknown) or 'of no type'}; served "
                f"are {', '.join(BLOCKS)}"
            )
        return cls(BLOCKS[next(iter(types.values()))], types, config.get("widened") or ())

    def describe(self) -> str:
        found = ", ".join(name for name, _ in Counter(self._types.values()).most_common())
        widened = f"; {', '.join(self._widened)} in bfloat16" if self._widened else ""
        return f"gguf ({found}{widened})"

    def for_layer(self, name: str, kind: Kind) -> GGUFMethod | None:
        found = self._types.get(name)
        if kind == "experts":  # which are asked about one by one, if any is in blocks
            found = next((x for of, x in self._types.items() if of.startswith(f"{name}.")), None)
        if found is None:
            return None
        if found not in self._methods:
            self._methods[found] = GGUFMethod(BLOCKS[found], self._types, self._widened)
        return self._methods[found]

    def merges(self, other: QuantMethod) -> bool:
        return isinstance(other, GGUFMethod)  # whatever the types of their blocks

    def prepared(self, kernel: Kernel, sizes: Sequence[Size]) -> Prepare | None:
        return packed_codes if kernel in ("c_linear", "c_rows") else None

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n_bytes = size.inputs // self._block.inputs * self._block.bytes
        slots = {"weight": Slot((size.outputs, n_bytes), stored=(torch.uint8,))}
        return slots | ({"bias": Slot((size.outputs,), dtype)} if size.bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        outputs, inputs = cut
        found: Slices = {} if outputs is None else {0: outputs}
        if inputs is not None:
            found[1] = [self._bytes_of(one) for one in inputs]
        return {"weight": found} | ({} if outputs is None else {"bias": {0: outputs}})

    def _bytes_of(self, inputs: Range) -> Range:
        unit = self._block.inputs
        if any(edge % unit for edge in inputs):
            raise UnsupportedModel(
                f"it is in blocks of {unit} inputs ({self._block.name}), and a rank would have "
                f"{inputs.start} to {inputs.end}: serve it with fewer ranks (--num-shard), without "
                "--quantize gguf, or give a file in smaller blocks (Q8_0)"
            )
        return Range(*(edge // unit * self._block.bytes for edge in inputs))

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        k, block = own_size(size, cut).inputs, self._block
        codes: list[torch.Tensor] = []
        numbers: list[list[torch.Tensor | None]] = []
        for some in tensors["weight"].split(max(1, VALUES // k)):
            parts = block.read(some.unflatten(1, (-1, block.bytes)))
            codes.append(pack(parts.codes.flatten(1), block.bits))
            numbers.append([None if one is None else one.flatten(1) for one in parts[1:]])
        scales, *more = (_joined(each) for each in zip(*numbers, strict=True))
        assert scales is not None
        minimums, factors, minimum_factors = more
        return GroupedWeight(
            Codes(torch.cat(codes), k, block.bits),
            Groups(scales, None, block.group, minimums, factors, minimum_factors),
            dtype,
            own_bias(tensors.get("bias")),
        )


def _joined(pieces: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [one for one in pieces if one is not None]
    return torch.cat(there) if there else None

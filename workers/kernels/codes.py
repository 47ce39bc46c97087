"""Weights in codes of 2 to 8 bits as the C kernels of codes.h and unpack.h read them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from workers.kernels.packed import Coded, KernelWeight, Weight, kernel, packed_bias

SCALES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
"""Types of scales, as linear.h numbers them."""
KINDS: dict[str, int] = {"integer": 0, "table": 1, "e4m3": 2}
"""Kinds of codes, as linear.h numbers them."""
MULTIPLE = 32
"""What the inputs of a group are a multiple of, or half of it."""
BITS = (2, 3, 4, 5, 6, 8)
"""Of codes."""
ROUNDED_BITS = (4, 5, 8)
"""Of those that are multiplied with activations in int8."""
ZERO_BITS = (4, 8)
"""Of those that have zeros."""


def bits_of(*, zeros: bool, round_inputs: bool) -> tuple[int, ...]:
    """Return of how many bits codes may be, with zeros and with rounded activations or not."""
    return ZERO_BITS if zeros else ROUNDED_BITS if round_inputs else BITS


def is_group(inputs: int, group: int, *, round_inputs: bool = False) -> bool:
    """Return whether the kernels have groups of so many of a weight's inputs."""
    half = group == MULTIPLE // 2 and not round_inputs
    return half or group % MULTIPLE == 0 or group >= inputs


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """A weight [n, k] in codes, each of which stands for value(code) * scale, or with minimums for
    code * scale + minimum."""

    codes: torch.Tensor
    """uint8 [n, k], each below 2 ** bits."""
    scales: torch.Tensor
    """[n, groups], float32, float16 or bfloat16, or int8 that is multiplied with `factors`."""
    bits: int
    """See `bits_of`."""
    group: int
    """Inputs that share a scale and a zero: a multiple of 32, or all of them; or 16, where
    activations are not rounded."""
    zeros: torch.Tensor | None = None
    """uint8 [n, groups]; None: half of all codes are below 0."""
    bias: torch.Tensor | None = None
    """[n]."""
    kind: str = "integer"
    """`integer`: a value is code - zero; `table`: of 4 bits, one of 16; `e4m3`: of 8 bits, such a
    number, none of them NaN."""
    table: torch.Tensor | None = None
    """float32 [16]."""
    order: torch.Tensor | None = None
    """int32 [k]: which input of the layer each is multiplied with; None: they are in order."""
    minimums: torch.Tensor | None = None
    """As scales, and none or all of the weights of a pair have them."""
    factors: torch.Tensor | None = None
    """float16 [n, blocks], each of whole groups."""
    minimum_factors: torch.Tensor | None = None

    @property
    def block(self) -> int:
        """Inputs that share a factor; 0: there is none."""
        return 0 if self.factors is None else self.codes.shape[1] // self.factors.shape[1]


class PackedCodes(KernelWeight):
    """Codes that are multiplied with activations as they are, or with those rounded to int8: 64
    inputs of a row, or 32 where groups are so small, have a scale of their own then."""

    def __init__(
        self,
        given: CodedWeight,
        dtype: torch.dtype,
        up: CodedWeight | None = None,
        activation: str = "silu",
        round_inputs: bool = False,
    ) -> None:
        """With `up`, of the same shapes: the result is activation(x given) * (x up).
        `round_inputs`, to int8, is for codes that are integers.

        Raises NativeUnavailable, and ValueError for groups that the kernel does not have.
        """
        super().__init__(given.codes.shape[0], given.codes.shape[1], dtype, activation)
        whole = given.group >= self.k
        if not is_group(self.k, given.group, round_inputs=round_inputs):
            raise ValueError(f"groups are of a multiple of {MULTIPLE} inputs, not {given.group}")
        bits = bits_of(zeros=given.zeros is not None, round_inputs=round_inputs)
        if given.bits not in bits:
            raise ValueError(f"codes are of {', '.join(map(str, bits))} bits, not {given.bits}")
        if round_inputs and given.kind != "integer":
            raise ValueError(
                f"activations are rounded for codes that are integers, not {given.kind}"
            )
        parts = [given] if up is None else [given, up]
        self.struct = Weight(
            None,
            None,
            self.n,
            self.k,
            dtype is torch.bfloat16,
            len(parts) > 1,
            given.bits,
            0 if whole else given.group,
            SCALES[given.scales.dtype],
            given.zeros is not None,
            round_inputs,
            KINDS[given.kind],
            None if given.table is None else given.table.data_ptr(),
            None if given.order is None else given.order.data_ptr(),
            given.minimums is not None,
            given.block,
        )
        self._table, self._order = given.table, given.order
        self._below: PackedCodes | None = None
        size = kernel().packed_codes_size(self.struct)
        self._packed = torch.empty(size * len(parts), dtype=torch.uint8)
        for at, part in enumerate(parts):
            given_tensors = (part.codes, part.scales, part.zeros, part.minimums, part.factors)
            read = [
                None if one is None else one.contiguous()
                for one in (*given_tensors, part.minimum_factors)
            ]
            kernel().pack_codes(
                self.struct,
                Coded(*(None if one is None else one.data_ptr() for one in read)),
                self._packed.data_ptr(),
                at + 1 if len(parts) > 1 else 0,
                torch.get_num_threads(),
            )
        padded = -(-self.n // kernel().lanes()) * kernel().lanes()
        self._bias = packed_bias([part.bias for part in parts], padded)
        self.struct.packed = self._packed.data_ptr()
        if self._bias is not None:
            self.struct.bias = self._bias.data_ptr()

    def append(self, other: PackedCodes) -> None:
        """Have the outputs of another weight, of any other form, behind the last."""
        last = self
        while last._below is not None:
            last = last._below
        last._below = other
        last.struct.below = ctypes.addressof(other.struct)
        self.n += other.n

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what some outputs stand for, as the rows of an embedding: ids [...], which are
        theirs, -> [..., k]."""
        flat = ids.flatten().contiguous()
        found = torch.empty(len(flat), self.k)
        kernel().look_up(self.struct, flat.data_ptr(), len(flat), found.data_ptr())
        return found.to(self.dtype).view(*ids.shape, self.k)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What it keeps in memory."""
        held = (self._packed, self._bias, self._table, self._order)
        below = [] if self._below is None else self._below.tensors
        return [*(one for one in held if one is not None), *below]

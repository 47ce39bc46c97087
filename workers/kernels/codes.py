"""Weights in codes of 4 or 8 bits as the C kernel of codes.h reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.kernels.packed import KernelWeight, Weight, kernel, packed_bias

SCALES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Types of scales, as linear.h numbers them."""
KINDS: dict[str, int] = {"integer": 0, "table": 1, "e4m3": 2}
"""Kinds of codes, as linear.h numbers them."""
MULTIPLE = 32
"""What the inputs of a group are a multiple of."""


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """A weight [n, k] in codes, each of which stands for value(code) * scale."""

    codes: torch.Tensor
    """uint8 [n, k]: 0 to 15 of 4 bits, 0 to 255 of 8."""
    scales: torch.Tensor
    """[n, groups], float32, float16 or bfloat16."""
    bits: int
    group: int
    """Inputs that share a scale and a zero: a multiple of 32, or all of them."""
    zeros: torch.Tensor | None = None
    """uint8 [n, groups]; None: 8 of 4 bits, 128 of 8."""
    bias: torch.Tensor | None = None
    """[n]."""
    kind: str = "integer"
    """`integer`: a value is code - zero; `table`: of 4 bits, one of 16; `e4m3`: of 8 bits, such a
    number, none of them NaN."""
    table: torch.Tensor | None = None
    """float32 [16]."""
    order: torch.Tensor | None = None
    """int32 [k]: which input of the layer each is multiplied with; None: they are in order."""


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
        if not whole and given.group % MULTIPLE:
            raise ValueError(f"groups are of a multiple of {MULTIPLE} inputs, not {given.group}")
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
        )
        self._table, self._order = given.table, given.order
        size = kernel().packed_codes_size(self.struct)
        self._packed = torch.empty(size * len(parts), dtype=torch.uint8)
        for at, part in enumerate(parts):
            codes, scales = part.codes.contiguous(), part.scales.contiguous()
            zeros = None if part.zeros is None else part.zeros.contiguous()
            kernel().pack_codes(
                self.struct,
                codes.data_ptr(),
                scales.data_ptr(),
                None if zeros is None else zeros.data_ptr(),
                self._packed.data_ptr(),
                at + 1 if len(parts) > 1 else 0,
                torch.get_num_threads(),
            )
        padded = -(-self.n // kernel().lanes()) * kernel().lanes()
        self._bias = packed_bias([part.bias for part in parts], padded)
        self.struct.packed = self._packed.data_ptr()
        if self._bias is not None:
            self.struct.bias = self._bias.data_ptr()

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What it keeps in memory."""
        held = (self._packed, self._bias, self._table, self._order)
        return [one for one in held if one is not None]

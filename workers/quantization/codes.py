"""Codes of few bits, packed: row by row, one behind the other, the first in the lowest bits.

So 4-bit codes lie two to a byte, the earlier one in the low nibble, and 3-bit ones run on over the
ends of bytes. Formats of files that pack them in another order are converted to this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of a weight [n, k], and what they are."""

    packed: torch.Tensor
    """uint8 [n, bytes]."""
    k: int
    bits: int = 8
    table: torch.Tensor | None = None
    """float32: the value of each code. None: it is an integer."""
    e4m3: bool = False
    """Codes of eight bits are numbers of four bits of exponent and three of fraction, none of them
    NaN."""

    @property
    def is_integer(self) -> bool:
        return self.table is None and not self.e4m3

    def values(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """float32 [rows, k]."""
        packed = self.packed[rows]
        if self.e4m3:
            return _numbers(packed)
        found = unpack(packed, self.bits, self.k)
        if self.table is None:
            return found.float()
        return self.table.index_select(0, found.flatten().int()).view(found.shape)


@dataclass(frozen=True, slots=True)
class Groups:
    """The scales of a weight, and what belongs to them."""

    scales: torch.Tensor
    """[n, groups], of the dtype in the file; int8 are multiplied with `factors`."""
    zeros: torch.Tensor | None
    """uint8 [n, groups]: the code whose value is 0. None: half of all codes are below 0, or with
    minimums none is."""
    size: int
    """Inputs of a group; the last one may have fewer."""
    minimums: torch.Tensor | None = None
    """As scales: what is added to each product of code and scale."""
    factors: torch.Tensor | None = None
    """[n, blocks]: of as many groups each, without a rest."""
    minimum_factors: torch.Tensor | None = None
    """As factors, of int8 minimums."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        held = (self.scales, self.zeros, self.minimums, self.factors, self.minimum_factors)
        return [one for one in held if one is not None]

    def scales_of(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """float32 [rows, groups]."""
        return _multiplied(self.scales[rows], self.factors, rows)

    def minimums_of(self, rows: slice | torch.Tensor) -> torch.Tensor | None:
        """float32 [rows, groups]."""
        if self.minimums is None:
            return None
        return _multiplied(self.minimums[rows], self.minimum_factors, rows)


def _multiplied(
    numbers: torch.Tensor, factors: torch.Tensor | None, rows: slice | torch.Tensor
) -> torch.Tensor:
    if factors is None:
        return numbers.float()
    own = factors[rows].float()
    blocks: torch.Tensor = numbers.float().unflatten(1, (own.shape[1], -1))
    return (blocks * own[..., None]).flatten(1)


def _numbers(packed: torch.Tensor) -> torch.Tensor:
    """e4m3 as uint8 -> float32; torch's own conversion takes four times as long on a CPU.

    Its fields are moved to where float16 has them, whose exponents mean 2 ** 8 less.
    """
    moved = packed.view(torch.int8).to(torch.int16) << 7
    moved &= -0x4001  # the sign that was spread into the highest bit of the exponent
    return moved.view(torch.float16).float().mul_(256.0)


def unpack(packed: torch.Tensor, bits: int, k: int) -> torch.Tensor:
    """uint8 [n, bytes] -> uint8 [n, k]; what lies behind the first k codes is padding."""
    if bits == 8:
        return packed.narrow(1, 0, k)
    n = len(packed)
    if 8 % bits == 0:
        mask = (1 << bits) - 1
        parts = [(packed >> shift) & mask for shift in range(0, 8, bits)]
        return torch.stack(parts, dim=-1).view(n, -1).narrow(1, 0, k)
    # Eight codes are `bits` whole bytes.
    n_groups = -(-k // 8)
    padded = torch.nn.functional.pad(packed, (0, max(0, n_groups * bits - packed.shape[1])))
    groups = padded[:, : n_groups * bits].reshape(n, n_groups, bits)
    codes = packed.new_empty((n, n_groups, 8))
    for at in range(8):
        byte, shift = divmod(at * bits, 8)
        value = groups[..., byte] >> shift
        if shift + bits > 8:
            value = value | (groups[..., byte + 1] << (8 - shift))
        codes[..., at] = value & ((1 << bits) - 1)
    return codes.view(n, -1)[:, :k]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, k] -> uint8 [n, bytes], the last byte filled up with zeros."""
    if bits == 8:
        return codes.contiguous()
    n, k = codes.shape
    together = math.lcm(bits, 8) // bits
    codes = torch.nn.functional.pad(codes, (0, -k % together)).view(n, -1, together)
    packed = codes.new_zeros((n, codes.shape[1], together * bits // 8))
    for at in range(together):
        byte, shift = divmod(at * bits, 8)
        code = codes.select(2, at)
        packed.select(2, byte).bitwise_or_(code << shift)
        if shift + bits > 8:
            packed.select(2, byte + 1).bitwise_or_(code >> (8 - shift))
    return packed.view(n, -1).narrow(1, 0, -(-k * bits // 8)).contiguous()


def bytes_of(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, words] -> uint8 [n, 4 words], the lowest first."""
    return words.contiguous().view(torch.uint8)

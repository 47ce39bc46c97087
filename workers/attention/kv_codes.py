"""Keys and values as codes of a byte each: what `--kv-cache-dtype` may name, and how a number
becomes a code and a code a number.

The kernels do the same, bit for bit: a code is the number divided by its scale and rounded to the
nearest one, ties to even; what attention reads is the code times its scale in float32, rounded to
the dtype of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

MOST_E4M3 = 448.0
"""The largest number of e4m3, which has no infinity: what is larger is stored as it."""
MOST_INT8 = 127


@dataclass(frozen=True, slots=True)
class KvCodes:
    """One way to store keys and values."""

    name: str
    """The value of `--kv-cache-dtype`."""
    number: int
    """In the kernels; 0 is none of these."""
    dtype: torch.dtype
    """Of the numbers that the codes are, a byte each."""
    of_rows: bool = False
    """Whether each token and head has a scale of its own, stored beside its codes."""

    @property
    def stored(self) -> torch.dtype:
        """The dtype of a pool: torch copies and indexes few tensors of 8-bit floats."""
        return torch.uint8 if self.dtype.is_floating_point else self.dtype

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scale of a token and head."""
        return torch.float32.itemsize if self.of_rows else 0


E4M3 = KvCodes("fp8_e4m3fn", 1, torch.float8_e4m3fn)
E5M2 = KvCodes("fp8_e5m2", 2, torch.float8_e5m2)
INT8 = KvCodes("int8", 3, torch.int8, of_rows=True)

CODES = {one.name: one for one in (E4M3, E5M2, INT8)}
"""By the values of `--kv-cache-dtype`."""


class KvScales(NamedTuple):
    """What the codes of all tokens of a layer are multiplied with, where they have no scales of
    their own."""

    key: float
    value: float


UNSCALED = KvScales(1.0, 1.0)


class Pool(NamedTuple):
    """The keys or the values of one layer."""

    stored: torch.Tensor
    """[n_blocks, n_kv_heads, block_size, head_dim], numbers or codes."""
    scales: torch.Tensor | None = None
    """float32 [n_blocks, n_kv_heads, block_size], where codes have scales of rows."""
    scale: float = 1.0
    """Of all codes, where they have none of rows."""


def encode(x: torch.Tensor, codes: KvCodes, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes like x [..., head_dim], and float32 scales [...], of one element unless the
    codes have scales of rows. A row that holds infinity or NaN has no finite scale."""
    x = x.float()
    if codes.of_rows:
        scales = x.abs().amax(-1) / MOST_INT8
        units = x / scales.masked_fill(scales == 0, 1.0)[..., None]
        # NaN in a row whose scale says so.
        units = units.nan_to_num(0.0).clamp(-MOST_INT8, MOST_INT8)
        return units.round().to(codes.stored), scales
    # A tensor: by a number, torch multiplies with its reciprocal on a GPU.
    scales = x.new_full((), scale)
    x = x / scales
    if codes is E4M3:
        x = x.clamp(-MOST_E4M3, MOST_E4M3)
    return x.to(codes.dtype).view(codes.stored), scales


def decode(
    stored: torch.Tensor, scales: torch.Tensor | float, codes: KvCodes, dtype: torch.dtype
) -> torch.Tensor:
    """Return the numbers of `dtype` that codes [..., head_dim] with these scales stand for."""
    return (stored.view(codes.dtype).float() * scales).to(dtype)

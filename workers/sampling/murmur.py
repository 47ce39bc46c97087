"""MurmurHash3's 32-bit finalizer, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

# 2**32 over the golden ratio, which spreads neighbouring ids, and MurmurHash3's two factors.
_SPREAD, _FIRST, _SECOND = (
    word - 2**32 if word >= 2**31 else word for word in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
)


def spread(ids: Tensor) -> Tensor:
    """Return token ids (any shape, int64 or int32) as int32 words far apart, all different."""
    return ids.int() * _SPREAD


def mix(words: Tensor) -> Tensor:
    """Apply the finalizer in place to int32, whose products wrap around. It is a bijection."""
    # One buffer for all that is shifted keeps a step in the cache. The masks make the shifts
    # logical ones.
    shifted = torch.empty_like(words)
    for n_bits, factor in ((16, _FIRST), (13, _SECOND)):
        words ^= _shifted(words, n_bits, shifted)
        words *= factor
    words ^= _shifted(words, 16, shifted)
    return words


def _shifted(words: Tensor, n_bits: int, out: Tensor) -> Tensor:
    return torch.bitwise_right_shift(words, n_bits, out=out).bitwise_and_(2 ** (32 - n_bits) - 1)

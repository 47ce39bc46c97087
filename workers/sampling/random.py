"""Random bits as a function of (seed, choice, position, purpose).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the seed is
the key, the rest is the counter. There is no state, so a preempted or replayed row draws the same
bits again, and no row can disturb another.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Purpose(IntEnum):
    """The purpose of random bits, so that two uses at one position are independent."""

    TOKEN = 0


def philox4x32(
    counter: tuple[UInt64s, UInt64s, UInt64s, UInt64s], key: tuple[UInt64s, UInt64s]
) -> tuple[UInt64s, UInt64s, UInt64s, UInt64s]:
    """Run ten rounds over arrays of one shape; every element holds a 32-bit word in a uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words fits in 64 bits exactly.
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def keys(
    seeds: UInt64s, choices: UInt64s, positions: UInt64s, purpose: Purpose
) -> NDArray[np.int32]:
    """Return 64 random bits for each element: [n, 2].

    Seeds take all 64 bits; choices and positions are below 2**32.
    """
    counter = (positions, choices, np.full_like(positions, purpose), np.zeros_like(positions))
    first, second, _, _ = philox4x32(counter, (seeds & _LOW, seeds >> _HALF))
    return np.stack([first, second], axis=1).astype(np.uint32).view(np.int32)

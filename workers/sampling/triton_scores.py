"""What the sampling kernels compute of a token: its score, its mass, its noise.

A row's scores are its logits less the largest, by its temperature. As the largest is 0, a score is
known by its depth too: the bits of its magnitude, an int32 that is 0 for the likeliest token and
rises as tokens get less likely. What a row asks for is in int32 numbers, laid out as
`device.NUMBERS`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Where a row's numbers are; top_p and min_score are float64 and take two.
KEYS = tl.constexpr(0)
MODE = tl.constexpr(2)
TEMPERATURE = tl.constexpr(3)
TOP_K = tl.constexpr(4)
TOP_P = tl.constexpr(5)
MIN_SCORE = tl.constexpr(7)
DRAWS = tl.constexpr(1)
TRUNCATES = tl.constexpr(2)

UNIT = tl.constexpr(2.0**40)
"""The unit of mass: truncation.UNIT."""
ROUNDING = tl.constexpr(2.0**52)
"""float64 of this size have no room for fractions: adding it rounds, half to even."""
SPREAD = tl.constexpr(0x9E3779B1)
FIRST = tl.constexpr(0x85EBCA6B)
SECOND = tl.constexpr(0xC2B2AE35)
TO_UNIT = tl.constexpr(2.0**-31 * (1 - 2.0**-24))


@triton.jit
def rising(x):
    """Return int32 that sort as float32 `x` do, NaN above all."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x == 0, 0, bits)  # -0.0 equals 0.0, but not in its bits
    bits = tl.where(x != x, 0x7FC00000, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def risen(images):
    """Return the float32 of which these are the `rising`."""
    return (images ^ ((images >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def double(numbers):
    """Return the float64 of two int32."""
    low = tl.load(numbers).to(tl.int64) & 0xFFFFFFFF
    return (low | (tl.load(numbers + 1).to(tl.int64) << 32)).to(tl.float64, bitcast=True)


@triton.jit
def temperature_of(numbers):
    drawn = tl.load(numbers + MODE) != 0
    given = tl.load(numbers + TEMPERATURE).to(tl.float32, bitcast=True)
    return tl.where(drawn, given, 1.0)


@triton.jit
def scores(logits, ids, there, peak, temperature):
    """Return float32: the row's scores after temperature, the largest being 0; -inf for those that
    are not `there`."""
    x = tl.load(logits + ids, mask=there, other=float("-inf")).to(tl.float32)
    return tl.div_rn(x - peak, temperature)


@triton.jit
def depths(score):
    return score.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def masses(score):
    """Return int64: exp(score) in units of 2**-40."""
    return (tl.exp(score.to(tl.float64)) * UNIT + ROUNDING - ROUNDING).to(tl.int64)


@triton.jit
def mixed(words):
    """Do `murmur.mix` on uint32."""
    words ^= words >> 16
    words = tl.mul(words, FIRST, sanitize_overflow=False)
    words ^= words >> 13
    words = tl.mul(words, SECOND, sanitize_overflow=False)
    return words ^ (words >> 16)


@triton.jit
def add_gumbel_noise(score, ids, numbers):
    """Do what `exponential_race.add_gumbel_noise` does, for one row."""
    first = tl.load(numbers + KEYS).to(tl.uint32, bitcast=True)
    second = tl.load(numbers + KEYS + 1).to(tl.uint32, bitcast=True)
    words = tl.mul(ids.to(tl.uint32), SPREAD, sanitize_overflow=False)
    words = mixed(mixed(tl.add(words, first, sanitize_overflow=False)) ^ second)
    negative = ((words & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * -TO_UNIT
    # log1p, which Triton has only for compiled kernels: what 1 + x rounds away is added to the
    # logarithm, whose slope there is 1 / (1 + x).
    rounded = 1 + negative
    log1p = tl.log(rounded) + (negative - (rounded - 1)) / rounded
    return score - tl.log(-log1p)

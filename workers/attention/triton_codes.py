"""Keys and values as codes of a byte each, for Triton kernels: the same numbers, bit for bit, as
kv_codes.py's.

CODES is `KvCodes.number`, 0 where the pools hold numbers. Codes are made and read by their bits:
GPUs before Ada have no e4m3.
"""

from __future__ import annotations

import triton
import triton.language as tl

E4M3 = tl.constexpr(1)
E5M2 = tl.constexpr(2)
INT8 = tl.constexpr(3)


@triton.jit
def to_fp8(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MOST: tl.constexpr):
    """float32 to the nearest code, ties to even; above MOST, that of MOST."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    bounded = tl.where(tl.abs(x) > MOST, MOST, tl.abs(x))
    drop: tl.constexpr = 23 - MANTISSA
    whole = bounded.to(tl.int32, bitcast=True)
    even = (whole + ((1 << (drop - 1)) - 1) + ((whole >> drop) & 1)) >> drop
    normal = even - ((127 - BIAS) << MANTISSA)
    # Below the least normal number the steps are equal: those of the floats from here on.
    steps: tl.constexpr = 1.0 * (1 << (24 - BIAS - MANTISSA))
    small = (bounded + steps).to(tl.int32, bitcast=True) & 0xFF
    least_normal: tl.constexpr = 1.0 / (1 << (BIAS - 1))
    code = tl.where(bounded < least_normal, small, normal)
    code = tl.where(size > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def store_codes(pool, scales, x, row, kept, d, scale, DIM: tl.constexpr, CODES: tl.constexpr):
    """Store float32 rows x [n, WIDTH] as codes at `row` [n, 1] of a pool, with their scales; those
    that are `kept` [n, 1], and of them what is within DIM. What is beyond it has to be 0."""
    at = pool + row * DIM + d
    there = kept & (d < DIM)
    if CODES == INT8:
        # As integers, infinity is above all numbers, and NaN above it.
        size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(size, 1)[:, None].to(tl.float32, bitcast=True)
        own = tl.div_rn(largest, tl.full(largest.shape, 127.0, tl.float32))
        unit = tl.div_rn(x, tl.broadcast_to(tl.where(own == 0.0, 1.0, own), x.shape))
        unit = tl.where(unit > 127.0, 127.0, tl.where(unit < -127.0, -127.0, unit))
        unit = tl.where(unit == unit, unit, 0.0)
        # 1.5 * 2**23: rounds to an integer, in the lowest bits.
        rounded = (unit + 12582912.0).to(tl.int32, bitcast=True)
        tl.store(at, rounded.to(tl.int8), mask=there)
        tl.store(scales + row, own, mask=kept)
    else:
        unit = tl.div_rn(x, tl.full(x.shape, 0.0, tl.float32) + scale)
        if CODES == E4M3:
            tl.store(at, to_fp8(unit, 3, 7, 448.0), mask=there)
        else:
            tl.store(at, to_fp8(unit, 2, 15, 65536.0), mask=there)


@triton.jit
def numbers_of(code, scale, CODES: tl.constexpr):
    """What codes stand for, in float32."""
    if CODES == INT8:
        return code.to(tl.float32) * scale
    wide = code.to(tl.int32)
    if CODES == E5M2:  # the upper half of a float16
        return (wide << 8).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * scale
    else:  # one bit of the exponent less, which is biased by 7 and not by 15
        moved = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        number = moved.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where((wide & 0x7F) == 0x7F, float("nan"), number) * scale

"""What codes of keys and values must be, by the definition of their formats: every number of a
format is listed, and the nearest one is looked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.kv_codes import E4M3, E5M2, KvCodes, KvScales
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.registry import Backend

Numbers = NDArray[np.float64]


def listed(codes: KvCodes) -> Numbers:
    """Return the numbers of the 256 codes of an 8-bit float; NaN and infinities as they are."""
    mantissa, bias = {E4M3: (3, 7), E5M2: (2, 15)}[codes]
    numbers = []
    for code in range(128):
        exponent, fraction = code >> mantissa, (code & ((1 << mantissa) - 1)) / (1 << mantissa)
        scaled = fraction * 2.0 if exponent == 0 else (1.0 + fraction) * 2.0**exponent
        numbers.append(scaled * 2.0**-bias)
    if codes is E4M3:
        numbers[127] = np.nan
    else:
        numbers[124:] = [np.inf, np.nan, np.nan, np.nan]
    return np.array([*numbers, *(-x for x in numbers)])


def nearest(x: NDArray[np.float32], codes: KvCodes) -> NDArray[np.uint8]:
    """Return the codes of the nearest numbers, ties to the even code, of any finite numbers: too
    large ones are the last number of e4m3 and the infinity of e5m2."""
    last = 126 if codes is E4M3 else 124
    numbers = listed(codes)[: last + 1]
    # As if the next number after the last finite one were there: halfway to it is infinity.
    numbers[-1] = numbers[-1] if codes is E4M3 else 2.0 * numbers[-5]
    size = np.minimum(np.abs(x).astype(np.float64), numbers[-1])
    above = np.clip(np.searchsorted(numbers, size), 1, last)
    up, down = numbers[above] - size, size - numbers[above - 1]
    even = above % 2 == 0
    code = np.where((up < down) | ((up == down) & even), above, above - 1)
    found: NDArray[np.uint8] = (code + 128 * np.signbit(x)).astype(np.uint8)
    return found


def coded(x: torch.Tensor, codes: KvCodes, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of x [..., dim] as they lie in a pool, and the scales [..., 1] of its rows,
    float32."""
    rows = x.float().numpy()
    if codes.of_rows:
        scales = np.abs(rows).max(-1, keepdims=True) / np.float32(127)
        units = np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0)
        return torch.from_numpy(np.rint(units).astype(np.int8)), torch.from_numpy(scales)
    scales = np.full((*rows.shape[:-1], 1), scale, np.float32)
    units = (rows / scales).astype(np.float32)
    return torch.from_numpy(nearest(units, codes)), torch.from_numpy(scales)


def stood_for(
    x: torch.Tensor, codes: KvCodes | None, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return what attention reads of x [..., dim], in `dtype`."""
    if codes is None:
        return x
    found, scales = coded(x, codes, scale)
    if not codes.of_rows:
        found = torch.from_numpy(listed(codes))[found.long()]
    return (found.float() * scales).to(dtype)


def attend_codes(model: Any, codes: KvCodes, scales: list[KvScales]) -> None:
    """Have the layers of a model of transformers attend what a cache of codes holds of their keys
    and values, all of the text's at once."""

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, **how: Any) -> Any:
        key, value = scales[module.layer_idx]
        k, v = stood_for(k, codes, key, k.dtype), stood_for(v, codes, value, v.dtype)
        return sdpa_attention_forward(module, q, k, v, None, **how)

    name = f"tgi_stored_as_{codes.name}"
    AttentionInterface.register(name, attend)
    model.config._attn_implementation = name


def every_code(backend: Backend, codes: KvCodes, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Return what attention makes of the 256 codes, as values of 16 texts of one token: the numbers
    that they stand for, by SCALED or by the scales 1 / 3, 2 / 3, ... of rows."""
    cache = PagedCache(1, 16, 1, 1, 16, dtype, device, codes)
    cache.scales = [SCALED]
    for pool in cache.keys + cache.values:
        pool.copy_(torch.arange(256).to(pool.dtype).view(pool.shape))
    for scales in cache.row_scales:
        scales.copy_((torch.arange(16) + 1.0).view(scales.shape) / 3)
    cache.keys[0].zero_()
    tables = torch.arange(16, dtype=torch.int32)[:, None]
    context = AttentionContext(
        cache, torch.arange(16), 16, tables, torch.ones(16, dtype=torch.int32)
    )
    attention = backend(AttentionShape(1, 1, 16, dtype))
    query = torch.ones(1, 1, 16, 16, dtype=dtype, device=device)
    out = attention.forward(AttentionLayer(0, 1.0), query, None, None, context)[0, :, 0].cpu()
    return out.masked_fill(~out.isfinite(), torch.nan)  # a kernel may multiply infinity by zero


def numbers_of_every_code(codes: KvCodes, dtype: torch.dtype) -> torch.Tensor:
    """Return what `every_code` must: NaN for infinities too."""
    if codes.of_rows:
        numbers = torch.arange(256).to(torch.int8).view(16, 16).float()
        return (numbers * ((torch.arange(16) + 1.0) / 3)[:, None]).to(dtype)
    numbers = torch.from_numpy(listed(codes)).view(16, 16).float()
    return (numbers * SCALED.value).to(dtype).masked_fill(numbers.isinf(), torch.nan)


SCALED = KvScales(0.03125 * 1.1, 0.7)
"""Scales that are no powers of two."""

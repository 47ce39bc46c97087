"""What a checkpoint says of the KV cache: its dtype, and the scales of its codes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from workers.attention.kv_codes import CODES, E4M3, KvCodes, KvScales
from workers.errors import UnsupportedModel
from workers.models.checkpoint import BrokenCheckpoint, Checkpoint

SCALE = re.compile(
    r"(?:.*\.)?(?P<layer>\d+)\.\w+\."
    r"(?:(?:qkv_proj\.|(?P<owner>[kv])_proj\.)?(?P<kind>kv|k|v)_scale"
    r"|(?P<output>[kv])_proj\.output_scale)"
)
"""The name of a scale: the number of the layer, its attention, and any spelling that there was.
Older files of compressed-tensors have those of what k_proj and v_proj give."""


def codes_of(
    kv_cache_dtype: str, settings: Mapping[str, Any] | None
) -> tuple[KvCodes | None, list[str]]:
    """Return what keys and values are stored as, None being the model's dtype, and notes.

    `kv_cache_dtype` is what --kv-cache-dtype says, `settings` are the checkpoint's, see
    `quantization_settings`: a `kv_cache_scheme` of 8-bit floats asks for e4m3. Raises
    UnsupportedModel for a name that is not known.
    """
    if kv_cache_dtype:
        if kv_cache_dtype not in CODES:
            raise UnsupportedModel(
                f"--kv-cache-dtype is one of {', '.join(CODES)}, not {kv_cache_dtype}"
            )
        return CODES[kv_cache_dtype], []
    scheme = (settings or {}).get("kv_cache_scheme")
    if not scheme:
        return None, []
    if isinstance(scheme, Mapping):
        kind = str(scheme.get("type", "int")).lower(), scheme.get("num_bits", 8)
        if kind == ("float", 8) and scheme.get("strategy") in (None, "tensor"):
            return E4M3, []
        scheme = {key: value for key, value in scheme.items() if value is not None}
    return None, [
        f"the checkpoint would have its KV cache in {scheme}, which is not followed: served is "
        "float of 8 bits with a scale for each layer. The cache has the model's dtype, or what "
        "--kv-cache-dtype says"
    ]


def take_scales(checkpoint: Checkpoint) -> dict[int, KvScales]:
    """Return the scales of e4m3 codes by the number of the layer, and leave their tensors out of
    the checkpoint. A layer that has one for keys or values alone has 1 for the others.

    Raises BrokenCheckpoint for one that is not a single positive number.
    """
    found: dict[int, dict[str, float]] = {}
    names = []
    for name in checkpoint.names:
        match = SCALE.fullmatch(name)
        if match is None or match["owner"] not in (None, match["kind"]):
            continue
        names.append(name)
        kind = match["kind"] or match["output"]
        found.setdefault(int(match["layer"]), {})[kind] = _number(checkpoint, name)
    checkpoint.leave_out(names)
    scales = {}
    for layer, of in found.items():
        both = of.get("kv", 1.0)  # the older form
        scales[layer] = KvScales(of.get("k", both), of.get("v", both))
    return scales


def _number(checkpoint: Checkpoint, name: str) -> float:
    scale = checkpoint.tensor(name).float()
    number = float(scale.flatten()[0]) if scale.numel() == 1 else math.nan
    if not 0 < number < math.inf:
        raise BrokenCheckpoint(
            f"{name} is {scale.tolist()} {list(scale.shape)}, and a scale of the KV cache is one "
            "positive number. Get the checkpoint again, or use --kv-cache-dtype int8 or fp8_e5m2, "
            "which do not read it"
        )
    return number

"""The rotary embedding of a GGUF file, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from typing import Any, Protocol

from workers.models.gguf_values import shortest

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_ORIGINAL = 8192
"""What every Llama from 3.1 on has. A file holds only the factors that come of it, so that they
are computed again and compared."""

GEMMA3_LOCAL_THETA = 10000.0
"""Of the sliding layers, unless the file says otherwise."""


class GgufMetadata(Protocol):
    """What is read of a GGUF file here; see `gguf.GgufModel`."""

    name: str

    def setting(self, key: str, default: Any = None) -> Any: ...
    def require_setting(self, key: str) -> Any: ...
    def has(self, name: str) -> bool: ...
    def values(self, name: str) -> Any: ...
    def unsupported(self, message: str) -> Exception: ...


def rope_parameters(model: GgufMetadata, rotary_dim: int) -> dict[str, object]:
    """The settings for `rotary_dim` rotated dimensions of a head. Raises `ModelUnavailable`."""
    theta = shortest(model.setting("rope.freq_base", 10000.0))
    scaled: dict[str, object] = {"rope_theta": theta, **_scaling(model, theta, rotary_dim)}
    if model.name != "gemma3":
        return scaled
    local = shortest(model.setting("rope.freq_base_swa", GEMMA3_LOCAL_THETA))
    return {
        "full_attention": scaled,
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _scaling(model: GgufMetadata, theta: float, rotary_dim: int) -> dict[str, object]:
    if model.has("rope_freqs.weight"):
        return _llama3(model, theta, rotary_dim)
    if model.has("rope_factors_long.weight"):
        return _longrope(model)
    kind = model.setting("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise model.unsupported(f"its rotary scaling is {kind!r}; read are 'linear' and 'yarn'")
    scaling: dict[str, object] = {
        "rope_type": kind,
        "factor": shortest(model.require_setting("rope.scaling.factor")),
    }
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = model.require_setting(
            "rope.scaling.original_context_length"
        )
        for ours in ("beta_fast", "beta_slow"):
            if (beta := model.setting(f"rope.scaling.yarn_{ours}")) is not None:
                scaling[ours] = shortest(beta)
    return scaling


def _llama3(model: GgufMetadata, theta: float, rotary_dim: int) -> dict[str, object]:
    factors = [float(factor) for factor in model.values("rope_freqs.weight")]
    factor = shortest(max(factors))
    expected = llama3_factors(theta, rotary_dim, factor)
    if len(factors) != len(expected) or not all(
        math.isclose(ours, theirs, rel_tol=1e-4)
        for ours, theirs in zip(expected, factors, strict=True)
    ):
        raise model.unsupported("its rope_freqs are not those of Llama 3.1 or later")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": LLAMA3_ORIGINAL,
        **LLAMA3,
    }


def llama3_factors(theta: float, rotary_dim: int, factor: float) -> list[float]:
    """By what Llama 3.1 divides each frequency: 1 for short waves, `factor` for long ones."""
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    factors = []
    for i in range(rotary_dim // 2):
        wave = 2 * math.pi * theta ** (2 * i / rotary_dim)
        smooth = min(1.0, max(0.0, (LLAMA3_ORIGINAL / wave - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _longrope(model: GgufMetadata) -> dict[str, object]:
    scaling: dict[str, object] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": model.require_setting(
            "rope.scaling.original_context_length"
        ),
    }
    for length in ("long", "short"):
        factors = model.values(f"rope_factors_{length}.weight")
        scaling[f"{length}_factor"] = [shortest(factor) for factor in factors]
    if (attention := model.setting("rope.scaling.attn_factor")) is not None:
        scaling["attention_factor"] = shortest(attention)
    return scaling

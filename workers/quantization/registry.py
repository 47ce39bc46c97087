"""The quantization methods, by `quant_method` of config.json. A new one is a file and a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.errors import UnsupportedModel
from workers.quantization.method import QuantMethod
from workers.quantization.plain import PlainMethod

METHODS: dict[str, type[QuantMethod]] = {}
"""Of quantized checkpoints."""

PLAIN = PlainMethod()
"""Of all others, and of the layers that a method leaves as they are."""


def method_of(config: Any) -> QuantMethod:
    """Return the method of a model's config. Raises UnsupportedModel."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return PLAIN
    settings: Mapping[str, Any] = given if isinstance(given, Mapping) else given.to_dict()
    name = str(settings.get("quant_method", "without a quant_method"))
    if name not in METHODS:
        raise UnsupportedModel(
            f"the weights are quantized ({name}), which is not served yet; use the unquantized "
            "model"
        )
    return METHODS[name].of(settings)

"""The quantization methods, by `quant_method` of config.json. A new one is a file and a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workers.errors import UnsupportedModel
from workers.quantization.awq import AWQMethod
from workers.quantization.bitsandbytes import BitsAndBytesMethod
from workers.quantization.compressed_tensors import CompressedTensorsMethod
from workers.quantization.fp8 import FP8Method
from workers.quantization.gguf import GGUFMethod
from workers.quantization.gptq import GPTQMethod
from workers.quantization.method import QuantMethod
from workers.quantization.mxfp4 import MXFP4Method
from workers.quantization.on_the_fly import ROUNDINGS, OnTheFlyMethod
from workers.quantization.plain import PlainMethod

METHODS: dict[str, type[QuantMethod]] = {
    "awq": AWQMethod,
    "bitsandbytes": BitsAndBytesMethod,
    "compressed-tensors": CompressedTensorsMethod,
    "fbgemm_fp8": FP8Method,
    "fp8": FP8Method,
    "gguf": GGUFMethod,
    "gptq": GPTQMethod,
    "mxfp4": MXFP4Method,
}
"""Of quantized checkpoints."""

PLAIN = PlainMethod()
"""Of all others, and of the layers that a method leaves as they are."""


def method_of(settings: Mapping[str, Any] | None, asked: str = "") -> QuantMethod:
    """Return the method of a checkpoint with this `quantization_config`, None being a plain one.

    `asked` is what --quantize says, if anything. Raises UnsupportedModel for a method that is not
    here or that is not the one asked for.
    """
    if settings is None:
        if asked in ROUNDINGS:
            return OnTheFlyMethod(asked)
        if asked:
            raise UnsupportedModel(_why_plain(asked))
        return PLAIN
    name = str(settings.get("quant_method", "without a quant_method"))
    if name not in METHODS:
        raise UnsupportedModel(
            f"the weights are quantized ({name}), which is not served yet; use the unquantized "
            f"model, or one quantized as {', '.join(sorted(METHODS))}"
        )
    try:
        method = METHODS[name].of(settings)
    except (AttributeError, LookupError, TypeError, ValueError, re.error) as error:
        raise UnsupportedModel(
            f"its quantization_config ({name}) cannot be read: {type(error).__name__}: {error}"
        ) from error
    if asked and asked not in method.flags:
        raise UnsupportedModel(
            f"--quantize {asked} does not fit the model, whose weights are in {method.describe()}. "
            "Leave it out: the checkpoint says by itself how it is quantized"
        )
    return method


def _why_plain(asked: str) -> str:
    if asked == "gguf":
        return (
            "--quantize gguf serves a GGUF file with its blocks as they are, and this model is "
            "none: give a GGUF file as --model-id (file.gguf, or owner/name:Q4_K_M of the Hub), "
            f"have this one quantized while it is loaded (--quantize {', '.join(sorted(ROUNDINGS))}"
            "), or leave --quantize out"
        )
    return (
        f"--quantize {asked} asks for weights that are quantized already, and those of this "
        "model are not. Give a checkpoint in that format as --model-id (its config.json has a "
        "quantization_config), write one (tgi-async quantize) and serve it without the flag, have "
        "a plain one quantized while it is loaded "
        f"(--quantize {', '.join(sorted(ROUNDINGS))}), or leave --quantize out"
    )

"""What a model folder says about the quantization of its weights, in any place and spelling that
there was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.errors import UnsupportedModel
from workers.json_object import read_object
from workers.models.checkpoint import Checkpoint

KEYS = ("quantization_config", "compression_config")
"""Of config.json; the later one is older."""
FILES = ("quantize_config.json", "quant_config.json")
"""Of GPTQ's and AWQ's writers, where config.json says nothing."""
MODELOPT = "hf_quant_config.json"
SPELLINGS = {"w_bit": "bits", "wbits": "bits", "q_group_size": "group_size"}
TENSORS = {"gptq_bits": "bits", "gptq_groupsize": "group_size", "gptq_sym": "sym"}
"""In the checkpoints of TGI's own quantizer; they are right whatever a file says."""
SIGNS = {
    "awq": ("zero_point", "modules_to_not_convert", "version"),
    "gptq": ("desc_act", "damp_percent", "sym"),
    "bitsandbytes": ("load_in_4bit", "load_in_8bit"),
    "compressed-tensors": ("config_groups",),
    "fp8": ("activation_scheme", "weight_block_size"),
}
"""Settings that only one method has, for files that do not name it."""
SCALES = ("weight_scale", "weight_scale_inv", "scale_weight", "scale", "SCB")
"""What a layer has beside a weight in codes, in the formats whose codes are called `weight`."""


def quantization_settings(
    folder: Path, config: Any, checkpoint: Checkpoint
) -> dict[str, Any] | None:
    """Return `quantization_config` with a `quant_method`; None for weights that are not quantized.

    `config` is transformers'. Raises UnsupportedModel where a file cannot be read, and for weights
    in codes of which no file says how they are read.
    """
    settings = _given(folder, config)
    stored = _stored(checkpoint)
    if settings is None and not stored:
        _expect_plain(folder, checkpoint)
        return None
    found = {SPELLINGS.get(key, key): value for key, value in (settings or {}).items()} | stored
    if "quant_method" not in found:
        kinds = [name for name, keys in SIGNS.items() if any(key in found for key in keys)]
        # `sym` and `bits` alone are GPTQ's, whose writers were the first.
        method = kinds[0] if kinds else "gptq" if "bits" in found else None
        found |= {} if method is None else {"quant_method": method}
    return found


def _given(folder: Path, config: Any) -> Mapping[str, Any] | None:
    for owner in (config, config.get_text_config()):
        for key in KEYS:
            given = getattr(owner, key, None)
            if given is not None:
                return given if isinstance(given, Mapping) else given.to_dict()
    for name in FILES:
        if (folder / name).is_file():
            try:
                return read_object(folder / name)
            except ValueError as error:
                raise UnsupportedModel(f"its {error}") from error
    return None


def _stored(checkpoint: Checkpoint) -> dict[str, Any]:
    names = set(checkpoint.names)
    return {
        key: int(checkpoint.tensor(name).flatten()[0])
        for name, key in TENSORS.items()
        if name in names
    }


def _expect_plain(folder: Path, checkpoint: Checkpoint) -> None:
    """Raises UnsupportedModel for a checkpoint that would be served as if codes were weights."""
    names = set(checkpoint.names)
    for name in checkpoint.names:
        layer, _, leaf = name.rpartition(".")
        dtype = checkpoint.dtype(name)
        if leaf != "weight" or dtype.itemsize > 1:
            continue
        if dtype.is_floating_point and names.isdisjoint(f"{layer}.{one}" for one in SCALES):
            continue  # without scales, these are plain numbers
        kind = str(dtype).removeprefix("torch.")
        other = " (hf_quant_config.json, ModelOpt's, is not read)"
        raise UnsupportedModel(
            f"its weights are quantized ({name} is {kind}), and its config.json has no "
            f"quantization_config to say how{other if (folder / MODELOPT).is_file() else ''}: get "
            "the whole checkpoint again, or use the unquantized model"
        )


def without_settings(config: Any) -> None:
    """Take the settings out of transformers' config: its own code for them is not to run."""
    for owner in (config, config.get_text_config()):
        for key in KEYS:
            owner.__dict__.pop(key, None)

"""A GGUF file, converted once into a model folder as transformers lays it out."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workers.build_cache import build_once
from workers.models.gguf_architectures import BLOCKS
from workers.progress import say, size, track

if TYPE_CHECKING:
    from workers.models.gguf import GgufModel

CONVERSION = 1
"""Raise when what the conversion writes changes, so that an older result is not used."""


def prepare_gguf(gguf: Path, model_id: str, *, packed: bool = False) -> Path:
    """The folder of the model in `gguf`, converted on the first call. See `convert_gguf` for
    `packed`. Raises `ModelUnavailable`.
    """
    file = gguf.resolve()
    of_file = (str(file), file.stat().st_size, file.stat().st_mtime_ns)
    described = repr((CONVERSION, *of_file, *(["packed"] if packed else [])))
    named = model_id if gguf.stem in model_id else f"{model_id}-{gguf.stem}"
    label = re.sub(r"[^A-Za-z0-9.]+", "-", named).strip("-.")[-60:]
    name = f"{label}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    return build_once(name, lambda folder: convert_gguf(gguf, folder, packed=packed))


def convert_gguf(
    gguf: Path,
    folder: Path,
    recommended: Mapping[str, object] | None = None,
    *,
    packed: bool = False,
) -> None:
    """Write the model in `gguf` into `folder`, a tensor at a time, its weights as bfloat16.

    With `packed`, blocks that can be multiplied as they are stay so. `recommended` goes into
    generation_config.json. Raises `ModelUnavailable` for a file that cannot be read exactly, or has
    no such blocks.
    """
    from workers.models.gguf import GgufModel
    from workers.models.gguf_tokenizer import build_tokenizer, end_token_ids, tokenizer_config
    from workers.models.safetensors_file import write, write_bfloat16

    say(f"Converting {gguf.name} ({size(gguf.stat().st_size)}), once: reading")
    model = GgufModel(gguf)
    ends = end_token_ids(model)
    generation: dict[str, object] = {**(recommended or {}), **model.special_token_ids()}
    if ends:
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    _write(folder / "tokenizer.json", build_tokenizer(model).to_str())
    _write_json(folder / "tokenizer_config.json", tokenizer_config(model))
    settings = {"quantization_config": _quantization(model)} if packed else {}
    _write_json(folder / "config.json", model.config() | settings)
    _write_json(folder / "generation_config.json", generation)
    weights = folder / "model.safetensors"
    n = len(model.shapes)
    if packed:
        tensors = track(model.stored_tensors(), n, "Copying the weights")
        write(weights, model.stored(), tensors)
    else:
        tensors = track(model.tensors(), n, "Converting the weights to bfloat16")
        write_bfloat16(weights, model.shapes, tensors)
    say(f"Converted to {size(weights.stat().st_size)} in the cache")


def _quantization(model: GgufModel) -> dict[str, object]:
    """What `workers.quantization.gguf` reads: the types of blocks of the layers that are in some,
    and those that became bfloat16. Raises `ModelUnavailable`."""
    types, entries = model.types(), model.stored()
    kept = {
        name.removesuffix(".weight"): kind
        for name, kind in types.items()
        if entries[name].dtype == "U8"
    }
    if not kept:
        raise model.unsupported(
            "--quantize gguf keeps blocks as they are, and it has none that can be: its tensors "
            f"are {', '.join(sorted(set(types.values())))}, and kept are {', '.join(BLOCKS)}. "
            "Leave --quantize out"
        )
    others = {kind for name, kind in types.items() if entries[name].dtype == "BF16"}
    return {"quant_method": "gguf", "types": kept, "widened": sorted(others - {"BF16"})}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

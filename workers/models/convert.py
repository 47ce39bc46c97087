"""What a model lacks, made once into a folder of the cache.

The folder that is served then holds links to the files of the original, which is never written to,
and beside them the files that were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from workers.models.cache import build_once
from workers.models.folder import INDEX, PICKLED, Lacks, ModelFolder
from workers.models.progress import say, track

if TYPE_CHECKING:
    import torch

CONVERSION = 1
"""Raise when what is written here changes, so that an older result is not used."""


def completed_name(folder: ModelFolder, lacks: Lacks) -> str:
    """The name in the cache of what `complete` makes. Changes with any file of the original."""
    files = sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in folder.path.iterdir()
    )
    described = repr((CONVERSION, str(folder.path), lacks, files))
    label = re.sub(r"[^A-Za-z0-9.]+", "-", folder.model_id).strip("-.")[-60:]
    return f"{label}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def complete(folder: ModelFolder, lacks: Lacks, *, trust_remote_code: bool) -> Path:
    """A folder with all that `folder` has and what it lacks.

    Raises `ModelUnavailable` when a file cannot be converted.
    """

    def build(made: Path) -> None:
        for entry in folder.path.iterdir():
            if not PICKLED.fullmatch(entry.name):
                (made / entry.name).symlink_to(entry.resolve())
        if lacks.tokenizer_json:
            _convert_tokenizer(folder, made, trust_remote_code=trust_remote_code)
        if lacks.safetensors:
            _convert_weights(folder, made)

    return build_once(completed_name(folder, lacks), build)


def _convert_tokenizer(folder: ModelFolder, made: Path, *, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    say(f"Converting the tokenizer of {folder.model_id} to tokenizer.json, once")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder.path, trust_remote_code=trust_remote_code, local_files_only=True
        )
        tokenizer.backend_tokenizer.save(str(made / "tokenizer.json"))
    except Exception as error:
        # Each kind of tokenizer fails in its own way, and so does the code of a model.
        raise folder.problem(
            f"it has no tokenizer.json, and transformers cannot make one: {error}"
        ) from error


def _convert_weights(folder: ModelFolder, made: Path) -> None:
    """Pickled weights to safetensors, file by file, in their own dtype."""
    names = sorted(name for name in folder.files if PICKLED.fullmatch(name))
    weight_map: dict[str, str] = {}
    total = 0
    for name in track(names, len(names), f"Converting the weights of {folder.model_id}"):
        target = name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        tensors = _load_pickled(folder, name)
        _save(tensors, made / target)
        weight_map.update(dict.fromkeys(tensors, target))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (made / INDEX).write_text(json.dumps(index, indent=2))


def _load_pickled(folder: ModelFolder, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one file, each with memory of its own."""
    import torch

    try:
        # weights_only: a pickle can otherwise run any code it likes.
        loaded = torch.load(folder.path / name, map_location="cpu", weights_only=True)
        # Tied weights share memory, which safetensors refuses to store.
        return {key: tensor.contiguous().clone() for key, tensor in loaded.items()}
    except Exception as error:
        raise folder.problem(f"{name} cannot be read as weights: {error}") from error


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""What a model lacks, made once into a folder of the cache.

The folder that is served then holds links to the files of the original, which is never written to,
and beside them the files that were made.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from workers.build_cache import build_once
from workers.models.convert_tokenizer import WARNING, add_special_tokens, convert_tokenizer
from workers.models.folder import Lacks, ModelFolder
from workers.models.weight_files import INDEX, PICKLED, pickled_files
from workers.progress import say, track

if TYPE_CHECKING:
    import torch

CONVERSION = 2
"""Raise when what is written here changes, so that an older result is not used."""


def completed_name(folder: ModelFolder, lacks: Lacks) -> str:
    """The name in the cache of what `complete` makes. Changes with any file of the original."""
    # Each version of transformers reads older forms of tokenizers in its own way.
    version = metadata.version("transformers") if lacks.tokenizer_json else ""
    described = repr((CONVERSION, version, str(folder.path), lacks, _files(folder.path)))
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    label = re.sub(r"[^A-Za-z0-9.]+", "-", folder.model_id).strip("-.")[-60:]
    return f"{label}-{digest}"


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each entry; not of links that lead nowhere."""
    found = [(entry.name, entry.stat()) for entry in path.iterdir() if entry.exists()]
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in found)


def complete(folder: ModelFolder, lacks: Lacks, *, trust_remote_code: bool) -> Path:
    """A folder with all that `folder` has and what it lacks.

    Raises `ModelUnavailable` when a file cannot be converted.
    """

    def build(made: Path) -> None:
        for name, _, _ in _files(folder.path):
            if name in lacks.plain_json:
                text = (folder.path / name).read_bytes().removeprefix(codecs.BOM_UTF8)
                (made / name).write_bytes(text)
            elif not PICKLED.fullmatch(name):
                (made / name).symlink_to((folder.path / name).resolve())
        if lacks.tokenizer_json:
            convert_tokenizer(folder, made, trust_remote_code=trust_remote_code)
        elif lacks.special_tokens:
            add_special_tokens(folder, made)
        if lacks.safetensors:
            _convert_weights(folder, made)

    made = build_once(completed_name(folder, lacks), build)
    if (made / WARNING).is_file():
        say((made / WARNING).read_text())
    return made


def _convert_weights(folder: ModelFolder, made: Path) -> None:
    """Pickled weights to safetensors, file by file, in their own dtype."""
    names = pickled_files(folder.path)
    weight_map: dict[str, str] = {}
    total = 0
    for name in track(names, len(names), f"Converting the weights of {folder.model_id}"):
        target = f"{Path(name.replace('pytorch_model', 'model')).stem}.safetensors"
        tensors = _load_pickled(folder, name)
        _save(tensors, made / target)
        weight_map.update(dict.fromkeys(tensors, target))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (made / INDEX).unlink(missing_ok=True)  # a link to one of other files
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
    """Raises OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""What makes a folder a model that can be served: a config, safetensors weights, a tokenizer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from workers.models.errors import ModelUnavailable
from workers.models.gguf_choice import choose_gguf, only_gguf

INDEX = "model.safetensors.index.json"

NOT_WEIGHTS = ("adapter_", "consolidated")
"""Starts of the names of safetensors files that are no weights of the model, or a second copy."""

PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")

TOKENIZER_SOURCES = re.compile(
    r"tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|vocab\.(json|txt)|.*\.tiktoken"
)
"""Files out of which transformers can make a `tokenizer.json`."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder said to hold a model, not looked into yet."""

    path: Path
    model_id: str
    """As it was asked for: a path or a Hub id."""
    revision: str | None
    """The commit, for a model of the Hub."""
    files: frozenset[str]
    """The names of the files at the top of the source, including those not downloaded."""
    gguf: Path | None = None
    """The file that is the model, where it is in GGUF."""

    def problem(self, what: str) -> ModelUnavailable:
        """The error that says `what` is wrong with this model."""
        return ModelUnavailable(f"model {self.model_id}: {what}")


@dataclass(frozen=True, slots=True)
class Lacks:
    """What has to be made before the folder can be served."""

    safetensors: bool
    """The weights are there only pickled."""
    tokenizer_json: bool
    """The tokenizer is there only in an older form."""


def local_folder(model_id: str) -> ModelFolder:
    """The folder at the path `model_id`, which exists, or that of the GGUF file there."""
    path = Path(model_id).expanduser().absolute()
    if path.is_file():
        return ModelFolder(path.parent, model_id, None, frozenset({path.name}), path)
    files = frozenset(entry.name for entry in path.iterdir())
    gguf = path / choose_gguf(model_id, files, None) if only_gguf(files) else None
    return ModelFolder(path, model_id, None, files, gguf)


def examine(folder: ModelFolder) -> Lacks:
    """What `folder` lacks. Raises `ModelUnavailable` for what cannot be made out of what it has."""
    _check_config(folder)
    weights = _safetensors(folder)
    for name in weights:
        _check_whole(folder, name)
    if not weights and not any(map(PICKLED.fullmatch, folder.files)):
        raise folder.problem("it has no safetensors weights (model.safetensors, or shards of it)")
    tokenizer = (folder.path / "tokenizer.json").is_file()
    if not tokenizer and not any(map(TOKENIZER_SOURCES.fullmatch, folder.files)):
        raise folder.problem("it has no tokenizer (tokenizer.json)")
    return Lacks(safetensors=not weights, tokenizer_json=not tokenizer)


def _check_config(folder: ModelFolder) -> None:
    if not (folder.path / "config.json").is_file():
        raise folder.problem("it has no config.json, so it is not a model that transformers reads")
    _read_object(folder, "config.json")


def _read_object(folder: ModelFolder, name: str) -> dict[str, object]:
    try:
        value = json.loads((folder.path / name).read_bytes())
    except ValueError as error:
        raise folder.problem(f"its {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise folder.problem(f"its {name} is not a JSON object")
    return value


def _safetensors(folder: ModelFolder) -> list[str]:
    """The names of the weight files. Raises `ModelUnavailable` for a shard that is not there."""
    if not (folder.path / INDEX).is_file():
        return sorted(
            path.name
            for path in folder.path.glob("*.safetensors")
            if not path.name.startswith(NOT_WEIGHTS)
        )
    shards = _read_object(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise folder.problem(f"its {INDEX} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    missing = [name for name in names if not (folder.path / name).is_file()]
    if missing:
        raise folder.problem(f"of its {len(names)} weight files these are missing: {missing}")
    return names


def _check_whole(folder: ModelFolder, name: str) -> None:
    """Compare the length of a safetensors file with what its header says."""
    path = folder.path / name
    length = path.stat().st_size
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        try:
            if header_length > length:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(header_length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise folder.problem(
                f"{name} is not a safetensors file (a git-lfs pointer that was never fetched?)"
            ) from error
    if length != 8 + header_length + end:
        raise folder.problem(
            f"{name} has {length} bytes and should have {8 + header_length + end}: "
            "it was cut short; fetch it again"
        )

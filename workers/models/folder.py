"""What makes a folder a model that can be served: a config, weights, a tokenizer."""

from __future__ import annotations

import codecs
import os
import re
from dataclasses import dataclass
from pathlib import Path

from workers.errors import ModelUnavailable
from workers.json_object import read_object
from workers.models.gguf_choice import choose_gguf, only_gguf
from workers.models.special_tokens import lacking_tokens
from workers.models.weight_files import pickled_files, read_header, safetensors_files

TOKENIZER_SOURCES = re.compile(
    r".*\.model(\.v\d+)?|.*\.spm|vocab\.(json|txt)|.*\.tiktoken|tekken\.json"
)
"""Files out of which transformers can make a `tokenizer.json`."""

NATIVE = ("params.json", "consolidated.00.pth", "consolidated.safetensors")
"""Files of models as Meta and Mistral lay them out."""


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
    special_tokens: bool = False
    """Files beside `tokenizer.json` name special tokens that it does not have as such."""
    plain_json: tuple[str, ...] = ()
    """JSON files that begin with a byte order mark, which no reader of JSON accepts."""

    def __bool__(self) -> bool:
        return bool(
            self.safetensors or self.tokenizer_json or self.special_tokens or self.plain_json
        )


def local_folder(model_id: str) -> ModelFolder:
    """The folder at the path `model_id`, which exists, or that of the GGUF file there."""
    path = Path(os.path.expanduser(model_id)).absolute()
    if path.is_file():
        return ModelFolder(path.parent, model_id, None, frozenset({path.name}), path)
    files = frozenset(entry.name for entry in path.iterdir())
    gguf = path / choose_gguf(model_id, files, None) if only_gguf(files) else None
    return ModelFolder(path, model_id, None, files, gguf)


def examine(folder: ModelFolder) -> Lacks:
    """What `folder` lacks. Raises `ModelUnavailable` for what cannot be made out of what it has."""
    _check_config(folder)
    try:
        weights = safetensors_files(folder.path)
        for name in weights:
            read_header(folder.path / name)
        pickled = [] if weights else pickled_files(folder.path)
        tokenizer = (folder.path / "tokenizer.json").is_file()
        special_tokens = tokenizer and bool(lacking_tokens(folder.path))
    except ValueError as error:
        raise folder.problem(str(error)) from error
    if not weights and not pickled:
        raise folder.problem(
            "it has no weights (model.safetensors, shards of it, or pytorch_model.bin)"
            + _native(folder)
        )
    if not tokenizer and not any(map(TOKENIZER_SOURCES.fullmatch, folder.files)):
        raise folder.problem("it has no tokenizer (tokenizer.json)")
    return Lacks(not weights, not tokenizer, special_tokens, _marked(folder.path))


def _check_config(folder: ModelFolder) -> None:
    if not (folder.path / "config.json").is_file():
        raise folder.problem(
            "it has no config.json, so it is not a model that transformers reads" + _native(folder)
        )
    try:
        read_object(folder.path / "config.json")
    except ValueError as error:
        raise folder.problem(f"its {error}") from error


def _native(folder: ModelFolder) -> str:
    """For a message: that there is the same in a layout that is not read, if so."""
    found = [name for name in NATIVE if name in folder.files]
    if not found:
        return ""
    return (
        f". It has {', '.join(found)}, which is the layout that Meta and Mistral publish: give the "
        "model in the layout of transformers, which most of them have too"
    )


def _marked(path: Path) -> tuple[str, ...]:
    """The JSON files that begin with a byte order mark."""
    found = []
    for file in sorted(path.glob("*.json")):
        if file.is_file():
            with file.open("rb") as opened:
                if opened.read(3) == codecs.BOM_UTF8:
                    found.append(file.name)
    return tuple(found)

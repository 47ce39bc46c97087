"""Write the folder of a quantized checkpoint: weights, config, and what lies beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workers.json_object import read_object
from workers.models.plain_model import PlainLayer, PlainModel
from workers.models.safetensors_writer import Entry, SafetensorsWriter
from workers.models.weight_files import INDEX, SINGLE, read_header, safetensors_files
from workers.quantization.compressed_tensors_writer import WrittenFormat
from workers.quantization.steps import Steps

UNFINISHED = ".unfinished"
"""The folder in the output's that files are written to until all are there."""
COPIED = (
    "*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.spm", "*.tiktoken",
    "vocab.txt", "merges.txt", "*.py", "LICENSE*", "NOTICE*",
)  # fmt: skip
NOT_COPIED = ("config.json", "quantize_config.json", "quant_config.json")
"""And the indexes of weights."""


class WrongArguments(ValueError):
    """What was asked for cannot be done; the message says why and what can."""


def expect_empty(out: Path) -> None:
    """Raise WrongArguments for a place where something is, but for what a run left that was
    killed."""
    if out.exists() and not out.is_dir():
        raise WrongArguments(f"{out} is a file: give a folder that is empty or not there yet")
    if out.is_dir() and [one for one in out.iterdir() if one.name != UNFINISHED]:
        raise WrongArguments(f"{out} is not empty: give a folder that is empty or not there yet")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder whose files come into `out` once the body is through; if it fails, none does.

    Raises WrongArguments where something is already, or OSError where the folder cannot be made.
    """
    expect_empty(out)
    folder = out / UNFINISHED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # config.json comes last: without it there is no model.
    for file in sorted(folder.iterdir(), key=lambda one: one.name == "config.json"):
        file.rename(out / file.name)
    folder.rmdir()
    descriptor = os.open(out, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class CheckpointWriter:
    """The files of the new checkpoint. There is one of weights for each of the old one."""

    def __init__(self, path: Path, folder: Path, model: PlainModel, written: WrittenFormat) -> None:
        """`path` is the folder of the model, `folder` an empty one. Raises OSError."""
        self._path, self._folder = path, folder
        self._checkpoint, self._written = model.checkpoint, written
        self._layers = {layer.key: layer for layer in model.layers}
        self._file_of: dict[str, SafetensorsWriter] = {}
        self._index: dict[str, str] = {}
        self._writers: list[SafetensorsWriter] = []
        self._size = 0
        names = safetensors_files(path)
        for name in names:
            keys = list(read_header(path / name))
            entries: dict[str, Entry] = {}
            for key in keys:
                entries |= self._entries(key)
            target = name if len(names) > 1 else SINGLE
            writer = SafetensorsWriter(folder / target, entries)
            self._writers.append(writer)
            self._index |= dict.fromkeys(entries, target)
            self._file_of |= dict.fromkeys(keys, writer)
            self._size += sum(
                torch.Size(shape).numel() * dtype.itemsize for dtype, shape in entries.values()
            )

    def put(self, layer: PlainLayer, steps: Steps) -> None:
        """Write what a layer's weight was rounded to."""
        prefix = layer.key.removesuffix("weight")
        for leaf, tensor in self._written.tensors(steps).items():
            self._file_of[layer.key].put(prefix + leaf, tensor)

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Write everything else: what stays plain, the index, the config with these settings, and
        the tokenizer's files and others. Raises ValueError for a layer that was not put."""
        for key, writer in self._file_of.items():
            if key not in self._layers:
                writer.put(key, self._checkpoint.tensor(key))
                self._checkpoint.release()
        for writer in self._writers:
            writer.finish()
        if len(self._writers) > 1:
            index = {"metadata": {"total_size": self._size}, "weight_map": self._index}
            self._write_json(INDEX, index)
        self._copy_others()
        config = read_object(self._path / "config.json")
        config.pop("transformers_weights", None)  # a name of the original's
        self._write_json("config.json", config | {"quantization_config": dict(settings)})

    def close(self) -> None:
        """Close all files, finished or not."""
        for writer in self._writers:
            writer.close()

    def _entries(self, key: str) -> dict[str, Entry]:
        """What the new checkpoint has of a tensor of the old one."""
        tensor = self._checkpoint.tensor(key)
        if key not in self._layers:
            return {key: Entry(tensor.dtype, tuple(tensor.shape))}
        n, k = tensor.shape
        prefix = key.removesuffix("weight")
        layout = self._written.layout(n, k, tensor.dtype)
        return {prefix + leaf: Entry(*one) for leaf, one in layout.items()}

    def _copy_others(self) -> None:
        for pattern in COPIED:
            for file in sorted(self._path.glob(pattern)):
                name = file.relative_to(self._path)
                if file.is_file() and name.name not in NOT_COPIED and ".index." not in name.name:
                    (self._folder / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, self._folder / name)

    def _write_json(self, name: str, value: object) -> None:
        with (self._folder / name).open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

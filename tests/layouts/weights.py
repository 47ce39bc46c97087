"""Weights in every layout: each writes those of one model into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"

Write = Callable[[Any, Path], None]
LAYOUTS: dict[str, Write] = {}
CHEAP = ("one file", "shards without an index", "shards beside a stale index", "pickled shards")


def layout(name: str) -> Callable[[Write], Write]:
    def register(write: Write) -> Write:
        LAYOUTS[name] = write
        return write

    return register


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """The parameters, a tied head left out."""
    tied = set(model.all_tied_weights_keys)
    parameters = model.named_parameters()
    return {name: one.detach().clone() for name, one in parameters if name not in tied}


def _halves(model: Any) -> list[dict[str, torch.Tensor]]:
    tensors = _tensors(model)
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[part::2]} for part in (0, 1)]


def _index(folder: Path, files: dict[str, str], name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@layout("one file")
def _one(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


@layout("one file beside a stale index")
def _one_and_index(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    _index(folder, {"lm_head.weight": "model-00001-of-00009.safetensors"})


@layout("shards")
def _shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / INDEX).exists()


@layout("shards without an index")
def _shards_alone(model: Any, folder: Path) -> None:
    _shards(model, folder)
    (folder / INDEX).unlink()


@layout("shards beside a stale index")
def _stale(model: Any, folder: Path) -> None:
    _shards_alone(model, folder)
    _index(folder, dict.fromkeys(_tensors(model), "model-00001-of-00077.safetensors"))


@layout("shards that the index confuses")
def _confused(model: Any, folder: Path) -> None:
    _config(model, folder)
    for part, tensors in enumerate(_halves(model)):
        save_file(tensors, folder / f"part-{part}.safetensors")
    first, second = (dict.fromkeys(tensors, part) for part, tensors in enumerate(_halves(model)))
    swapped = {name: f"part-{1 - part}.safetensors" for name, part in (first | second).items()}
    _index(folder, swapped)


@layout("files of any name")
def _any_name(model: Any, folder: Path) -> None:
    _config(model, folder)
    for name, tensors in zip(("weights a", "größer"), _halves(model), strict=True):
        save_file(tensors, folder / f"{name}.safetensors")


@layout("a variant")
def _variant(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, variant="fp32")


@layout("shards of a variant")
def _variant_shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, variant="fp32", max_shard_size="60KB")


@layout("a file that the config names")
def _named(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    save_file({"x": torch.ones(1)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "mine.safetensors"
    (folder / "config.json").write_text(json.dumps(config))


@layout("one file beside copies and adapters")
def _beside(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    for name in ("consolidated", "adapter_model", "other", "model.fp16"):
        save_file({"x": torch.ones(1)}, folder / f"{name}.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never read")


@layout("without the prefix of the base model")
def _base(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tensors = {name.removeprefix("model."): one for name, one in _tensors(model).items()}
    save_file(tensors, folder / "model.safetensors")


@layout("with a head that is left over")
def _left_over(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"v_head.summary.weight": torch.ones(1)}, file)


@layout("in another dtype")
def _half(model: Any, folder: Path) -> None:
    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)


@layout("pickled")
def _pickled(model: Any, folder: Path) -> None:
    _config(model, folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@layout("pickled as torch once did")
def _legacy(model: Any, folder: Path) -> None:
    _config(model, folder)
    file = folder / "pytorch_model.bin"
    torch.save(_tensors(model), file, _use_new_zipfile_serialization=False)


@layout("pickled shards")
def _pickled_shards(model: Any, folder: Path) -> None:
    _config(model, folder)
    files = {}
    for part, tensors in enumerate(_halves(model), 1):
        name = f"pytorch_model-{part:05}-of-00002.bin"
        torch.save(tensors, folder / name)
        files.update(dict.fromkeys(tensors, name))
    _index(folder, files, "pytorch_model.bin.index.json")


@layout("pickled shards without an index")
def _pickled_alone(model: Any, folder: Path) -> None:
    _pickled_shards(model, folder)
    (folder / "pytorch_model.bin.index.json").unlink()


@layout("pickled beside an index of safetensors")
def _pickled_stale(model: Any, folder: Path) -> None:
    """As after a download that left safetensors out."""
    _pickled_shards(model, folder)
    _index(folder, dict.fromkeys(_tensors(model), "model-00001-of-00003.safetensors"))
    save_file({"lora": torch.ones(1)}, folder / "adapter_model.safetensors")


def _config(model: Any, folder: Path) -> None:
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)

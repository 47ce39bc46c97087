"""The files of a model just whole enough to pass for one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

INDEX = "model.safetensors.index.json"


def safetensors(*names: str) -> bytes:
    """A safetensors file with a small tensor under each of `names`."""
    return save({name: np.arange(4, dtype=np.float32) for name in names})


def index(**files: str) -> bytes:
    """The index of shards: the file of each tensor."""
    return json.dumps({"weight_map": files}).encode()


def model_files() -> dict[str, bytes]:
    """A model with all that serving needs."""
    return {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": safetensors("a"),
        "tokenizer.json": b"{}",
    }


def pickled(tensors: dict[str, torch.Tensor]) -> bytes:
    """A file of weights as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write `files` into the new folder `folder`."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder

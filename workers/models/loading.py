"""A model folder to a model that runs: through the fused decoder, or transformers' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from workers.decoder.families import Description, NotFused
from workers.decoder.native import NativeDecoder
from workers.models.description import Shape, Unsupported
from workers.models.pretrained import Pretrained
from workers.models.transformers_path import TransformersModel
from workers.runner import Model


class Loaded(Model, Protocol):
    """A model, what must be known of it, and what a person should."""

    shape: Shape
    weight_bytes: int
    notes: list[str]


class FusedModel(NativeDecoder):
    """The fused decoder with the weights of a model of transformers."""

    def __init__(self, loaded: Pretrained) -> None:
        """Raises NotFused, with `loaded` as it was."""
        super().__init__(Description(loaded.module))
        self.shape = loaded.shape
        self.notes: list[str] = []


def load(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    implementation: str = "auto",
) -> Loaded:
    """`implementation` is "fused", "transformers" or "auto". Raises Unsupported, or ValueError and
    OSError of transformers for a broken folder."""
    loaded = Pretrained(path, dtype, device, trust_remote_code)
    if implementation == "transformers":
        return TransformersModel(loaded)
    try:
        return FusedModel(loaded)
    except NotFused as reason:
        if implementation == "fused":
            raise Unsupported(
                f"the fused decoder does not run it: {reason}. --model-impl auto runs it through "
                "transformers' code"
            ) from reason
        model = TransformersModel(loaded)
        model.notes.append(f"it runs through transformers' code, which is slower: {reason}")
        return model

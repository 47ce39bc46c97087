"""A model folder to a model that runs: through the fused decoder, or transformers' own code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from workers.decoder.families import Description, NotFused
from workers.decoder.native import NativeDecoder
from workers.models import rope
from workers.models.description import Shape, Unsupported
from workers.models.pretrained import Pretrained
from workers.models.transformers_path import TransformersModel
from workers.ranks import Ranks
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
        super().__init__(
            Description(loaded.module, loaded.fill, loaded.device, loaded.sharding), loaded.ranks
        )
        loaded.weights.release()
        self.shape = loaded.shape
        self.notes: list[str] = []


def load(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    implementation: str = "auto",
    ranks: Ranks | None = None,
    scaling: rope.Scaling | None = None,
    max_total_tokens: int = 0,
) -> Loaded:
    """`implementation` is "fused", "transformers" or "auto"; with `ranks`, this rank's part.
    `scaling` is in the place of the config's. `max_total_tokens` is the longest text that is asked
    for, 0 being the longest that is exact; the model's shape says what is had.

    Raises Unsupported, or ValueError and OSError for a broken folder.
    """
    loaded = Pretrained(path, dtype, device, trust_remote_code, ranks, scaling)
    if scaling is not None and not max_total_tokens:
        # Longer texts are what it is given for.
        max_total_tokens = rope.limits_of(loaded.module.config).most
    longest, notes = rope.fix(loaded.module, max_total_tokens)
    loaded.shape = replace(loaded.shape, max_total_tokens=longest)
    model = _running(loaded, implementation)
    model.notes += notes
    return model


def _running(loaded: Pretrained, implementation: str) -> Loaded:
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

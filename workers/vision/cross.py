"""Tokens that attend to images: which of a step see which, and how a layer attends to them.

An encoding has the keys and values that all cross-attention layers make of an image, so that they
are computed once an image, live and die with it, and are shared by all rows that have it. They are
no pages of the KV cache: their number does not grow with a text, rows with the same image share
all of them wherever it stands in their prompts, and they are needed before the first token that
sees them is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from tgi_async.wire.messages import Image
from workers.forward import CrossAttended


class Sight(NamedTuple):
    """Packed tokens that attend to the same encodings."""

    n: int
    encodings: tuple[torch.Tensor, ...]
    ahead: bool
    """Whether they stand before all images of their row."""


class View(NamedTuple):
    """What the tokens of a step see."""

    tokens: torch.Tensor
    """int64 [n]: the packed tokens that attend to anything, those of each sight side by side."""
    sights: list[Sight]
    """Those of tokens ahead of their images come last."""

    @property
    def n_behind(self) -> int:
        """How many of the tokens have an image at or before them."""
        return sum(sight.n for sight in self.sights if not sight.ahead)


def view_of(cross: Sequence[CrossAttended], looks_ahead: bool, device: torch.device) -> View | None:
    """Return what tokens see; None where none sees anything.

    With `looks_ahead`, those before the first image of their row see all that it has.
    """
    places: dict[tuple[bool, tuple[int, ...]], list[range]] = {}
    encodings: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}
    for row in cross:
        end = row.first + row.n
        edges = {edge for image in row.images for edge in (image.start, image.end or end)}
        cuts = sorted({row.first, end} | {edge for edge in edges if row.first < edge < end})
        first_image = min((image.start for image in row.images), default=0)
        for at, until in pairwise(cuts):
            ahead = at < first_image
            if ahead and not looks_ahead:
                continue
            seen = tuple(
                image.encoding
                for image in row.images
                if ahead or (image.start <= at and (image.end is None or at < image.end))
            )
            if seen:
                key = tuple(map(id, seen))
                encodings[key] = seen
                packed = range(row.start + at - row.first, row.start + until - row.first)
                places.setdefault((ahead, key), []).append(packed)
    if not places:
        return None
    tokens: list[int] = []
    sights: list[Sight] = []
    for (ahead, key), runs in sorted(places.items(), key=lambda place: place[0][0]):
        sights.append(Sight(sum(map(len, runs)), encodings[key], ahead))
        for run in runs:
            tokens += run
    return View(torch.tensor(tokens, device=device), sights)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """Query [n, n_heads, head_dim], all of it to all keys and values [n_kv_heads, n_keys, head_dim]
    -> [n, n_heads, head_dim]."""
    n, n_kv_heads, head_dim = len(query), len(keys), query.shape[2]
    # As nothing is masked, the heads of a group are more queries to the same keys.
    grouped = query.reshape(n, n_kv_heads, -1, head_dim).transpose(0, 1).flatten(1, 2)
    mixed = scaled_dot_product_attention(grouped[None], keys[None], values[None], scale=scale)[0]
    return mixed.reshape(n_kv_heads, n, -1, head_dim).transpose(0, 1).reshape(query.shape)


class CrossVision(ABC):
    """A model of transformers whose cross-attention layers attend to images. See
    `forward.Vision`."""

    image_token_id = -1
    """No token's: encodings stand in the place of none."""
    cross = True
    mrope = False
    looks_ahead: ClassVar[bool]
    """Whether tokens before the first image of a prompt attend to its images."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.view: View | None = None
        """Of the forward pass that runs."""

    @abstractmethod
    def encode(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return keys and values, [layers, 2, n_kv_heads, n_keys, head_dim]. See
        `forward.Vision`."""

    @abstractmethod
    def seen(
        self, tokens: NDArray[np.int64], images: Sequence[Image]
    ) -> list[tuple[int, int | None]]:
        """See `forward.Vision`."""

    def positions(
        self, tokens: NDArray[np.int64], images: Sequence[Mapping[str, torch.Tensor]]
    ) -> NDArray[np.int64]:
        """See `forward.Vision`; images take up no more positions than their tokens."""
        return np.tile(np.arange(len(tokens)), (3, 1))

    @contextmanager
    def over(self, cross: Sequence[CrossAttended]) -> Iterator[None]:
        """Run forward passes of the model over rows with these images."""
        self.view = view_of(cross, self.looks_ahead, self._model.device)
        try:
            yield
        finally:
            self.view = None

    def mix(self, view: View, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend in a cross-attention layer, of `layer` by its number among them, with the queries
        of the tokens of a view, [n, n_heads, head_dim] -> [n, n_heads, head_dim]."""
        mixed = []
        parts = query.split([sight.n for sight in view.sights])
        for part, sight in zip(parts, view.sights, strict=True):
            found = [self.visible(one, sight.ahead)[layer] for one in sight.encodings]
            keys, values = found[0] if len(found) == 1 else torch.cat(found, dim=2)
            mixed.append(attend(part, keys, values, scale))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def visible(self, encoding: torch.Tensor, ahead: bool) -> torch.Tensor:
        """Return what tokens attend to of an encoding, which ones before all images may attend to
        more of."""
        return encoding


def expect(arrays: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return an array of one image in this shape, which it may have with other dimensions of 1.

    Raises ValueError for one that is not there or has another shape.
    """
    found = arrays.get(name)
    if found is None:
        there = ", ".join(sorted(arrays)) or "none"
        raise ValueError(f"an image needs the array {name}, and was given {there}")
    if [n for n in found.shape if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"{name} of an image is {list(found.shape)}, the model's {list(shape)}")
    return found.reshape(shape)

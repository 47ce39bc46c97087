"""The largest image that a model is given, for a run that shows what memory its encoder takes."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import torch
from PIL import Image

from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.reader import Read, Reader
from workers.images.readers import reader

SIDES = range(16, 4097, 16)
"""In pixels. Models make no more of a larger image than of the largest of these, unless it has more
tokens than a text can have."""
RATIOS = (1, 4)
"""Of sides. Of a square most models make most; some cut a long one into parts."""


def largest_image(folder: Path, most_tokens: int) -> dict[str, torch.Tensor] | None:
    """Return the arrays of an image of at most so many tokens that takes an encoder most; None
    where the model in this folder gets no images, or every one has more tokens."""
    try:
        reads = reader(ModelFiles(folder))
    except UnsupportedImages:
        return None
    found = [one for ratio in RATIOS if (one := _largest(reads, ratio, most_tokens)) is not None]
    if not found:
        return None
    largest = max(found, key=lambda one: one.arrays["pixel_values"].size)
    return {name: torch.from_numpy(one) for name, one in largest.arrays.items()}


def _largest(reads: Reader, ratio: int, most_tokens: int) -> Read | None:
    def read(side: int) -> Read:
        return reads.read(Image.new("RGB", (side, side // ratio)), "auto")

    def n_tokens(one: Read) -> int:
        return one.text.count(reads.image_token)

    if n_tokens(largest := read(SIDES[-1])) <= most_tokens:
        return largest
    n_fitting = bisect_right(SIDES, most_tokens, key=lambda side: n_tokens(read(side)))
    return read(SIDES[n_fitting - 1]) if n_fitting else None

"""Prompts with images: each image's text in the place of its placeholder.

The result is the text that transformers' processors tokenize. As families write what is around
images in ways of their own, some of them change more than the placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tgi_async.errors import ValidationError
from tgi_async.images.family import Family

FAKE = "<fake_token_around_image>"
"""What both generations of Idefics write around images, and once between neighbours."""


def expand(family: Family, text: str, images: Sequence[str]) -> str:
    """Return `text` with the texts of `images` in the places of its placeholders, in order.

    A text without images stays as it is. Special tokens go around the result if the family
    `adds_special_tokens`.

    Raises:
        ValidationError: it does not have as many placeholders as images, or what was around images
            looks like one where it is put together.
    """
    pieces = text.split(family.placeholder)
    if len(pieces) != len(images) + 1:
        raise ValidationError(
            f"the prompt has {len(images)} images and {len(pieces) - 1} places for them "
            f"({family.placeholder}): the chat template has to write one for each image"
        )
    if not images:
        return text
    expanded = _EXPANSIONS.get(family.kind, _in_place)(family, pieces, images)
    token = family.image_token
    if expanded.count(token) != sum(image.count(token) for image in images):
        raise ValidationError(
            f"the texts around images look like another image, {token}, when they are put "
            "together. Remove parts of it from the texts"
        )
    return expanded


def _in_place(family: Family, pieces: Sequence[str], images: Sequence[str]) -> str:
    """Write pieces of text and images by turns."""
    filled = [piece + image for piece, image in zip(pieces, images, strict=False)]
    return "".join(filled) + pieces[-1]


def _idefics(family: Family, pieces: Sequence[str], images: Sequence[str]) -> str:
    """Drop spaces beside images, and write once what is between neighbours."""
    stripped = [piece.strip(" ") for piece in pieces]
    return _in_place(family, stripped, images).replace(FAKE * 2, FAKE)


def _idefics2(family: Family, pieces: Sequence[str], images: Sequence[str]) -> str:
    """Write once what is between neighbours, and a space between an image and a word."""
    return _BEFORE_WORD.sub(f"{FAKE} ", _in_place(family, pieces, images).replace(FAKE * 2, FAKE))


_BEFORE_WORD = re.compile(rf"{FAKE}(?=[^\s<])")


def _paligemma(family: Family, pieces: Sequence[str], images: Sequence[str]) -> str:
    """Write all images first, wherever they were."""
    return "".join(images) + family.bos_token + "".join(pieces) + "\n"


def _mllama(family: Family, pieces: Sequence[str], images: Sequence[str]) -> str:
    """Begin the text behind the images that it starts with, unless it says where it begins."""
    whole = _in_place(family, pieces, images)
    if family.bos_token in whole:
        return whole
    n_first = next((i for i, piece in enumerate(pieces) if piece), len(images))
    first = "".join(images[:n_first])
    return first + family.bos_token + whole.removeprefix(first)


_EXPANSIONS: dict[str, Callable[[Family, Sequence[str], Sequence[str]], str]] = {
    "idefics": _idefics,
    "idefics2": _idefics2,
    "mllama": _mllama,
    "paligemma": _paligemma,
}
"""By the model's type, where it is not `_in_place`."""

"""What the router must know of how a model family takes images."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Attends = Literal["", "image", "prompt"]


class Family(Struct, frozen=True):
    """How a model takes images; the process that prepares them reads it from the model's files."""

    kind: str
    """The model's `model_type`."""
    placeholder: str
    """What a chat template writes for an image, and an image's text stands in the place of."""
    image_token: str
    """The token that is repeated, once for each row of an encoding."""
    image_token_id: int
    reserved: tuple[str, ...]
    """Tokens that mean an image, or a part of one: where a user types one, it is text."""
    bidirectional: Attends = ""
    """What attends in both directions: the placeholders of each image, or the whole prompt of which
    they are a part."""
    looks_ahead: bool = False
    """Whether tokens before an image depend on it."""
    bos_token: str = ""
    """The token of the beginning, for families whose expansion writes it."""
    adds_special_tokens: bool = True
    """Whether a prompt with images gets the tokenizer's special tokens where one without does."""


class Prepared(Struct, frozen=True):
    """An image as the process prepared it."""

    digest: bytes
    """16 bytes, of the pixels and of all that makes the arrays and the text of them."""
    text: str
    """What stands in the place of the placeholder."""
    n_tokens: int
    """Rows of its encoding: how often `image_token` is in `text`."""
    n_bytes: int
    """Of its file."""
    width: int
    height: int
    """Of the image as it came, turned upright."""

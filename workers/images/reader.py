"""What reads images for a model: transformers' image processor, and what its family does around it.

One image at a time goes through a checkpoint's image processor, which works on numpy arrays and
needs no torch; what it becomes is an image's arrays, as a batch of one image and named as the
model's code names them, and the text that stands for it. The text is of as many tokens as the
encoder has rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

from tgi_async.images.family import Family
from workers.images.arithmetic import replace_arithmetic
from workers.images.arrays import Arrays
from workers.images.model_files import ModelFiles, UnsupportedImages

Detail = Literal["auto", "low", "high"]
"""OpenAI's name for how finely an image is looked at. `auto` and `high` are as the checkpoint
says, which models were trained with."""


class Read(NamedTuple):
    """An image as a model reads it."""

    arrays: Arrays
    """In C order."""
    text: str
    digest: bytes
    """16 bytes, of the pixels and of all that makes the arrays and the text of them."""


Outcome = Mapping[str, Any]
"""What an image processor makes of an image."""


class Reader:
    """Reads images for one model.

    `placeholder` is what a chat template writes for an image; `tokens` are those that mean an
    image or a part of one, and a model may lack some.
    """

    placeholder = "<image>"
    tokens: tuple[str, ...] = ()
    bidirectional: Literal["", "image", "prompt"] = ""
    looks_ahead: bool = False
    adds_special_tokens = True
    inputs: tuple[str, ...] = ("pixel_values",)
    """The arrays that the model takes, or that its positions or masks are made from."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.image_token = files.named_token("image_token", "<image>")
        self.processor = _image_processor(files)
        self.settings = f"{files.kind} {self.processor} {files.processor}"
        replace_arithmetic(self.processor)

    def family(self) -> Family:
        """Describe the model to the router. Raises UnsupportedImages."""
        id = self.files.token_id(self.image_token)
        config = self.files.config
        expected = config.get("image_token_id", config.get("image_token_index", id))
        if expected != id:
            raise UnsupportedImages(
                f"{self.files.folder}: the token {self.image_token} is {id} in its tokenizer and "
                f"{expected} in its config.json"
            )
        known = self.files.added_tokens
        tokens = {self.image_token, *self.tokens}
        return Family(
            kind=self.files.kind,
            placeholder=self.placeholder,
            image_token=self.image_token,
            image_token_id=id,
            reserved=tuple(token for token in known if token in tokens),
            bidirectional=self.bidirectional,
            looks_ahead=self.looks_ahead,
            bos_token=self.files.named_token("bos_token", ""),
            adds_special_tokens=self.adds_special_tokens,
        )

    def read(self, image: Image.Image, detail: Detail) -> Read:
        """Read an image, RGB and upright."""
        options = self.options(detail)
        outcome = self.processor(images=image, return_tensors="np", **options)
        text = self.text(outcome, image.size)
        return Read(self.arrays(outcome), text, self.digest(image, options, text))

    def digest(self, image: Image.Image, options: dict[str, Any], text: str) -> bytes:
        """Return 16 bytes that equal images have, read with equal settings.

        The arrays follow from these, and are up to a hundred times as large.
        """
        described = f"{self.settings} {sorted(options.items())} {image.size} {text}\0"
        hashed = sha256(described.encode())
        hashed.update(image.tobytes())
        return hashed.digest()[:16]

    def options(self, detail: Detail) -> dict[str, Any]:
        """Return what the image processor is given beside the checkpoint's settings."""
        return {}

    def arrays(self, outcome: Outcome) -> Arrays:
        return {name: np.ascontiguousarray(outcome[name]) for name in self.inputs}

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        """Return what stands for an image of this width and height."""
        raise NotImplementedError


def _image_processor(files: ModelFiles) -> Any:
    """Return transformers' image processor that works without torch. Raises UnsupportedImages."""
    if "image_processor" not in files.processor and not files.has("preprocessor_config.json"):
        raise UnsupportedImages(
            f"{files.folder} does not say how images are prepared: it has no "
            "preprocessor_config.json, and no `image_processor` in a processor_config.json"
        )
    try:
        return AutoImageProcessor.from_pretrained(
            files.folder, backend="pil", trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # of many kinds, for files that are missing or odd
        raise UnsupportedImages(
            f"{files.folder}: transformers has no image processor for it that works without "
            f"torch: {error}"
        ) from error

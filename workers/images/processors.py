"""Families whose processor of transformers says what stands for an image.

A processor joins an image processor, a tokenizer and, of some families, a processor of videos,
which needs torch. Only its image processor is needed here and what it knows of texts: a stand-in
with the names of the special tokens takes the tokenizer's place, which would take its memory and
seconds to load, and nothing takes the place of videos.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.auto import processing_auto

from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.reader import Detail, Read, Reader

NAMES: dict[str, str] = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
"""Transformers' names of processors, by the model's type."""


class OfProcessor(Reader):
    """Reads images as the processor of the model's type does."""

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.whole = _processor(files, self.processor)
        self.placeholder = str(self.whole.image_token)
        config = files.config
        id = int(config.get("image_token_id", config.get("image_token_index", -1)))
        by_id = {id: token for token, id in files.added_tokens.items()}
        self.image_token = by_id.get(id, self.placeholder)
        sample = self.read(Image.new("RGB", SAMPLE), "auto").text
        named = (self.placeholder, getattr(self.whole, "video_token", None))
        self.tokens = tuple(
            token for token in files.added_tokens if token in sample or token in named
        )

    def read(self, image: Image.Image, detail: Detail) -> Read:
        merged = self.whole._merge_kwargs(
            self.whole.valid_processor_kwargs, tokenizer_init_kwargs={}, **self.options(detail)
        )
        options = merged["images_kwargs"] | {"return_tensors": "np"}
        images, _, *_ = self.whole.prepare_inputs_layout(images=[image], text=[self.placeholder])
        outcome, (text,) = self.whole._process_images(images, **options)
        arrays = {
            name: np.ascontiguousarray(array)
            for name, array in outcome.items()
            if name not in self.whole.unused_input_names
        }
        return Read(arrays, text, self.digest(image, {}, text))


SAMPLE = (400, 300)
"""Width and height of an image that is read to see which tokens stand for images."""


class _Tokens:
    """A tokenizer's special tokens, by the names that processors know them by."""

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self.init_kwargs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_token_id"):
            return self.convert_tokens_to_ids(getattr(self, name.removesuffix("_id")))
        if name.endswith("_token") and (token := self._files.named_token(name, "")):
            return token
        raise AttributeError(name)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        if isinstance(tokens, str):
            return self._files.added_tokens.get(tokens)
        return [self._files.added_tokens.get(token) for token in tokens]


def _processor(files: ModelFiles, image_processor: Any) -> Any:
    """Return a model's processor for images alone. Raises UnsupportedImages."""
    given = {"image_processor": image_processor, "tokenizer": _Tokens(files)}
    try:
        its_class = processor_class(files.processor_class or NAMES[files.kind])
        for_images = type("Processor", (its_class,), {"check_argument_for_proper_class": _any})
        asked = inspect.signature(its_class.__init__).parameters
        settings = {name: value for name, value in files.processor.items() if name in asked}
        joined = {name: given.get(name) for name in its_class.get_attributes()}
        return for_images(**{**settings, **joined})
    except Exception as error:  # of whatever kind, for files that are missing or odd
        raise UnsupportedImages(
            f"{files.folder}: transformers has no processor for it that works without torch: "
            f"{error}"
        ) from error


def processor_class(name: str) -> Any:
    """Return a processor's class. Raises LookupError.

    Its own file has it even where libraries for videos are missing.
    """
    for folder, class_name in NAMES.items():
        if class_name == name:
            folder = folder.replace("-", "_")
            with suppress(ModuleNotFoundError):
                found = import_module(f"transformers.models.{folder}.processing_{folder}")
                return getattr(found, name)
    raise LookupError(f"there is no {name}")


def _any(self: Any, name: str, value: Any) -> type:
    """Take an argument of any class."""
    return type(value)

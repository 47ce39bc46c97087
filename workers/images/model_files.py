"""What a model's files say of its images and of the tokens that stand for them."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any


class UnsupportedImages(Exception):
    """A model's images are not served. Its text is for the operator."""


class ModelFiles:
    """The files of a folder, read when needed. Raises UnsupportedImages where one is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._read("config.json")
        self.processor = self._read("processor_config.json")

    @property
    def kind(self) -> str:
        """The model's type; empty if it has none."""
        return str(self.config.get("model_type") or "")

    @property
    def processor_class(self) -> str:
        """What transformers joins an image processor and a tokenizer with; empty: not said."""
        named = self.processor.get("processor_class") or self.tokenizer.get("processor_class")
        return str(named or "")

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        return self._read("tokenizer_config.json")

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The ids of the tokens that are taken out of a text before it is tokenized, by text."""
        listed = self.tokenizer.get("added_tokens_decoder")
        if listed:
            return {added["content"]: int(id) for id, added in listed.items()}
        added_tokens = self._read("tokenizer.json").get("added_tokens", ())
        return {added["content"]: added["id"] for added in added_tokens}

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of this name."""
        return (self.folder / name).is_file()

    def named_token(self, name: str, default: str) -> str:
        """Return the text of a special token by the name that the tokenizer's files give it."""
        more = self.tokenizer.get("extra_special_tokens")
        for named in (self.processor, more, self.tokenizer):
            if isinstance(named, dict) and (token := named.get(name)):
                return str(token["content"] if isinstance(token, dict) else token)
        return default

    def token_id(self, token: str) -> int:
        try:
            return self.added_tokens[token]
        except KeyError:
            raise UnsupportedImages(
                f"{self.folder}: its tokenizer has no token {token}, which stands for an image"
            ) from None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UnsupportedImages(f"{self.folder / name} cannot be read: {error}") from error
        return found if isinstance(found, dict) else {}

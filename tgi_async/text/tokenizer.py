"""A model's tokenizer: text to token ids and back, through the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from tgi_async.errors import StartError, ValidationError
from tgi_async.text.segments import Segments

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Span(NamedTuple):
    """A token and its characters in the text, from `start` up to `stop`."""

    id: int
    start: int
    stop: int


class Tokenizer:
    """A tokenizer. Thread-safe: its caches change no result.

    `special_tokens` maps names such as `eos_token` to texts, as the model's configuration has them;
    chat templates see them under these names. `special_ids` are the tokens that are not text.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        # A tokenizer.json may hold the truncation and padding that its training used.
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        """As the library has it."""
        self._segments = Segments(inner)
        self._n_added: int = inner.num_special_tokens_to_add(is_pair=False)
        """Special tokens that it puts around a text."""
        self.special_tokens = dict(special_tokens or {})
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.special_texts: dict[int, str] = {
            id: added.content
            for id, added in inner.get_added_tokens_decoder().items()
            if added.special
        }
        """The names of the special tokens."""
        self.special_ids = frozenset(self.special_texts)
        self._special_by_text = {text: id for id, text in self.special_texts.items()}
        self._texts: dict[int, str] = {}
        """Texts of single tokens, cached for streaming."""

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, and the special tokens' names from the files beside it.

        Raises:
            StartError: `tokenizer.json` is missing or cannot be read.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise StartError(
                f"The model folder {folder} has no tokenizer.json. "
                "Give a model that has one, or prepare it with `tgi-async download-weights`"
            )
        try:
            inner = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise StartError(f"The tokenizer in {file} cannot be read: {error}") from error
        config = read_config(folder)
        if "added_tokens_decoder" not in config:  # as in transformers
            config |= read_config(folder, "special_tokens_map.json")
        return cls(inner, special_tokens_of(config))

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`. Names of special tokens in it become those tokens, as in
        TGI.

        Raises:
            ValidationError: `text` cannot be tokenized.
        """
        try:
            if add_special_tokens and self._n_added:
                (encoding,) = self.inner.encode_batch_fast([text])
                ids: list[int] = encoding.ids
                return ids
            return self._segments.encode(text)
        except Exception as error:  # the library raises bare Exception
            raise _refused(text, error) from error

    def spans(self, text: str, *, add_special_tokens: bool = True) -> list[Span]:
        """Return tokens with their places in `text`; those that the tokenizer added have empty
        ones.

        Raises:
            ValidationError: `text` cannot be tokenized.
        """
        try:
            encoding = self.inner.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # the library raises bare Exception
            raise _refused(text, error) from error
        return [Span(id, *place) for id, place in zip(encoding.ids, encoding.offsets, strict=True)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are no whole character become U+FFFD."""
        if len(ids) == 1 and skip_special_tokens:
            return self._texts.get(ids[0]) or self._decode_one(ids[0])
        text: str = self.inner.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def _decode_one(self, id: int) -> str:
        text: str = self.inner.decode((id,))
        if id < self.vocab_size:
            self._texts[id] = text
        return text

    def token_text(self, id: int) -> str:
        """Return the text of one token alone; a special token's name; empty for an unknown id."""
        special = self.special_texts.get(id)
        return self.decode([id]) if special is None else special

    def entry(self, id: int) -> str:
        """Return the vocabulary's own text of a token, such as `Ġthe`; empty for an unknown id."""
        return self.inner.id_to_token(id) or ""

    def is_special(self, id: int) -> bool:
        """Return whether this token is a special token."""
        return id in self.special_ids

    def special_id(self, name: str) -> int | None:
        """Return the special token of this name, if there is one."""
        return self._special_by_text.get(name)

    def mark_at_start(self, text: str) -> int | None:
        """Return the special token that `text` begins with, white space aside, if it does."""
        try:
            ids = self.encode(text, add_special_tokens=False)
        except ValidationError:
            return None
        for id in ids:
            if self.is_special(id):
                return id
            if self.decode([id]).strip():
                return None
        return None


def _refused(text: str, error: Exception) -> ValidationError:
    return ValidationError(f"tokenizer error: {_fault_of(text) or error}")


def _fault_of(text: str) -> str | None:
    """Return why the library refuses `text`: its own message does not help."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"the text is not valid Unicode at character {error.start} (a lone surrogate). "
            "Send whole characters"
        )
    return None


def read_config(folder: Path, name: str = "tokenizer_config.json") -> dict[str, Any]:
    """Return the JSON object in this file, or an empty one where there is none.

    Raises:
        StartError: it is there and cannot be read.
    """
    file = folder / name
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise StartError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise StartError(f"{file} must hold a JSON object, and holds {type(config).__name__}")
    return config


def special_tokens_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return special tokens by name; a configuration has each as a text or as an added token's
    fields.

    Some models have further ones, which are named alike.
    """
    found: dict[str, str] = {}
    further = [name for name in config if name.endswith("_token")]
    for name in dict.fromkeys((*SPECIAL_TOKEN_NAMES, *further)):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found

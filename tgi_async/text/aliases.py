"""Tokens that no text of a user ever becomes.

The names of some tokens mean something that only the server may write, such as `<image>`, whose
place the worker fills with an image. A copy of the tokenizer knows these tokens by other names, of
the same length, which nobody can guess. In it a name that a user typed is text like any other, in
one pass with what stands around it, so that no piece begins or ends there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

import tokenizers

from tgi_async.errors import StartError, ValidationError
from tgi_async.text.tokenizer import Tokenizer

PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters for private use, which no normalizer changes."""


class Aliases:
    """Other names of some tokens of a tokenizer. Thread-safe.

    `names` that are no tokens of it are left out.
    """

    def __init__(self, tokenizer: Tokenizer, names: Iterable[str]) -> None:
        """Raises StartError: the tokenizer cannot do without these names."""
        inner = tokenizer.inner
        known = {name: id for name in names if (id := inner.token_to_id(name)) is not None}
        # A name that begins with another one goes first.
        longest_first = sorted(known, key=len, reverse=True)
        self._aliases = {name: _alias(name) for name in longest_first}
        try:
            renamed = tokenizers.Tokenizer.from_str(_renamed(inner.to_str(), self._aliases))
        except Exception as error:  # the library raises bare Exception
            raise _inseparable(", ".join(known)) from error
        self.tokenizer = Tokenizer(renamed, tokenizer.special_tokens)
        """Makes tokens of texts with aliases; to decode, use the one that was given."""
        for name, id in known.items():
            if self.tokenizer.vocab_size != tokenizer.vocab_size or not self._is_apart(name, id):
                raise _inseparable(name)

    def _is_apart(self, name: str, id: int) -> bool:
        """Return whether the alias is the token, and the name is not."""
        try:
            found = self.tokenizer.encode(self._aliases[name], add_special_tokens=False)
            typed = self.tokenizer.encode(f"a{name}a", add_special_tokens=False)
        except ValidationError:
            return False
        return found == [id] and id not in typed

    def written(self, text: str) -> str:
        """Return `text`, of the same length, with aliases for all of the names."""
        for name, alias in self._aliases.items():
            text = text.replace(name, alias)
        return text


def _inseparable(name: str) -> StartError:
    return StartError(
        f"The tokenizer cannot tell the token {name} from a text that a user types, so images "
        "cannot be served. Give a model with another tokenizer.json"
    )


def _alias(name: str) -> str:
    """Return another name. The first character stays, by which texts are cut for caching."""
    return name[0] + "".join(chr(secrets.choice(PRIVATE)) for _ in name[1:])


def _renamed(file: str, aliases: dict[str, str]) -> str:
    """Return a `tokenizer.json` in which tokens have these names.

    The model's own entries are renamed too, as an added token's id is that of its entry.
    """
    made: dict[str, Any] = json.loads(file)
    for token in made["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    model = made["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {aliases.get(name, name): id for name, id in vocabulary.items()}
    elif isinstance(vocabulary, list):  # of a unigram model: entries with their scores
        model["vocab"] = [[aliases.get(name, name), score] for name, score in vocabulary]
    if isinstance(model.get("merges"), list):
        model["merges"] = [pair for pair in model["merges"] if not _made_of(pair) & aliases.keys()]
    return json.dumps(made, ensure_ascii=False)


def _made_of(pair: str | list[str]) -> set[str]:
    """Return what a merge takes and makes."""
    parts = pair.split(" ") if isinstance(pair, str) else pair
    return {*parts, "".join(parts)}

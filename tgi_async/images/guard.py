"""Keep what a user typed apart from what a chat template writes.

A template writes an image's placeholder, and a user may type the same text. So it is taken out of
what the user typed before the template runs, and put back behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any


class Guard:
    """Hides some names in the texts of one request.

    Each is replaced by a mark of digits, random so that no text can hold it. Digits and underscores
    go unchanged through a template's filters, such as those that trim, change case or write JSON.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._secret = f"_{secrets.randbelow(10**24):024d}"
        # A name that begins with another one goes first.
        longest_first = sorted(set(names), key=len, reverse=True)
        self._marks = {
            name: f"{self._secret}{place:03d}_" for place, name in enumerate(longest_first)
        }

    def hidden(self, value: Any) -> Any:
        """Return `value`, of JSON's types, with marks for the names in all of its texts."""
        if isinstance(value, str):
            for name, mark in self._marks.items():
                value = value.replace(name, mark)
            return value
        if isinstance(value, dict):
            return {self.hidden(name): self.hidden(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.hidden(one) for one in value]
        return value

    def shown(self, text: str) -> str:
        """Return `text` with the names in the place of the marks."""
        if self._secret in text:
            for name, mark in self._marks.items():
                text = text.replace(mark, name)
        return text

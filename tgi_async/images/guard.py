"""Keep what a user typed apart from what a chat template writes.

A template writes an image's placeholder, and a user may type the same text. So it is taken out of
what the user typed before the template runs, and put back behind.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any


class Guard:
    """Hides some names in the texts of one request.

    Each is replaced by a mark of digits, random so that no text can hold it. Digits and underscores
    go unchanged through a template's filters, such as those that trim, change case or write JSON.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(set(names), key=len, reverse=True)
        secret = f"_{secrets.randbelow(10**24):024d}"
        self._marks = {name: f"{secret}{place:03d}_" for place, name in enumerate(self._names)}
        self._hide = _any_of(self._names)
        self._show = _any_of(self._marks.values())
        self._shown = {mark: name for name, mark in self._marks.items()}

    def hidden(self, value: Any) -> Any:
        """Return `value`, of JSON's types, with marks for the names in all of its texts."""
        if isinstance(value, str):
            return self._hide.sub(lambda found: self._marks[found[0]], value)
        if isinstance(value, dict):
            return {self.hidden(name): self.hidden(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.hidden(one) for one in value]
        return value

    def shown(self, text: str) -> str:
        """Return `text` with the names in the place of the marks."""
        return self._show.sub(lambda found: self._shown[found[0]], text)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of these texts, which matches nothing if there are none."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")

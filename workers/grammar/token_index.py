"""The bytes of tokens, sorted: which begin with a text, and which a text begins with."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

SPANNING = re.compile(rb',\s?(".*"|[^"\s\[{]+[,\]}]|\[.*\]|\{.*\})', re.DOTALL)
"""Tokens with an item that begins and ends in one token."""
NEXT = re.compile(rb".,\s?[^\s]", re.DOTALL)
"""Tokens with the end of an item and the beginning of the next one."""
OPENING = re.compile(rb"[\"\]}],\s?[\"\[{]")
"""Tokens with the beginning of an item only; they are common, and allowed where something can
follow."""
BEHIND = re.compile(rb".+[\"\]},]", re.DOTALL)
"""Tokens with something, and then what may end an item."""
LONGEST_TOKEN = 64
"""Most bytes that are looked up."""


class TokenIndex:
    """The bytes of a vocabulary's tokens, sorted."""

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        """Make the index. `texts` by token; None for special tokens, which are no part of a
        value."""
        self.texts = [text or b"" for text in texts]
        ordered = sorted((text, token) for token, text in enumerate(texts) if text)
        self._texts = [text for text, _ in ordered]
        self._ids = [token for _, token in ordered]
        self.spanning = [token for text, token in ordered if SPANNING.search(text)]
        self.next = [token for text, token in ordered if NEXT.search(text)]
        self.opening = [token for token in self.next if OPENING.fullmatch(self.texts[token])]
        self.with_quote = {token for token, text in enumerate(self.texts) if b'"' in text}
        self.behind = [token for text, token in ordered if BEHIND.match(text)]

    def that_begin(self, rest: bytes) -> list[int]:
        """Return tokens whose text begins with `rest`, which is not empty."""
        low = bisect_left(self._texts, rest)
        high = bisect_left(self._texts, rest + b"\xff" * LONGEST_TOKEN)
        return self._ids[low:high]

    def within(self, rest: bytes) -> Iterator[tuple[int, int]]:
        """Return length and token of each proper prefix of `rest`."""
        for length in range(1, min(len(rest), LONGEST_TOKEN)):
            at = bisect_left(self._texts, rest[:length])
            while at < len(self._texts) and self._texts[at] == rest[:length]:
                yield length, self._ids[at]
                at += 1

    def of(self, text: bytes) -> list[int] | None:
        """Return the tokens of a text, the longest first; None if there are none."""
        found: list[int] = []
        while text:
            longest = 0
            for length in range(min(len(text), LONGEST_TOKEN), 0, -1):
                at = bisect_left(self._texts, text[:length])
                if at < len(self._texts) and self._texts[at] == text[:length]:
                    found.append(self._ids[at])
                    longest = length
                    break
            if not longest:
                return None
            text = text[longest:]
        return found

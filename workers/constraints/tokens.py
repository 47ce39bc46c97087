"""The bytes that each token adds to a text, and the tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.constraints.expressions import FILLERS
from workers.constraints.nodes import SPECIAL
from workers.constraints.runs import Runs
from workers.constraints.trie import Trie


class TokenTable:
    """The tokens of one vocabulary."""

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[bytes | None], end_ids: Sequence[int]
    ) -> None:
        """Make the table. `texts`: what each token id adds to a text; None for special tokens."""
        self._tokenizer = tokenizer
        self.end_ids = frozenset(end_ids)
        self.n_words = -(-len(texts) // 32)
        self.ends = np.zeros(self.n_words, np.int32)
        """The mask of end-of-text tokens."""
        for one in self.end_ids:
            self.ends.view(np.uint32)[one >> 5] |= np.uint32(1 << (one & 31))
        self.symbols: list[tuple[int, ...]] = [
            (SPECIAL + i,) if text is None else tuple(text) for i, text in enumerate(texts)
        ]
        """The symbols of each token, for `Expressions.after`."""
        self.trie = Trie(texts)
        self.silent = np.array([not text for text in texts], np.bool_)
        """[tokens]: special tokens, and those that add nothing."""
        self._ids: dict[bytes, int] = {}
        for i in range(len(texts) - 1, -1, -1):
            if (text := texts[i]) and i not in self.end_ids:
                self._ids[text] = i
        self.longest = max(map(len, self._ids), default=0)
        """Bytes of the longest token."""
        self.runs = Runs(self._ids)
        plain = [text for text in self._ids if text.isalpha() and text.islower()]
        longest = max(plain, key=lambda text: (len(text), text), default=b"a")
        self.fillers = (*FILLERS, longest)
        """See `Expressions`: free text in few tokens."""

    def of(self, symbols: Sequence[int]) -> list[int] | None:
        """Return the tokenizer's own tokens of a text, or those of `spelled` where it has none."""
        return self._parts(symbols, self._of_text)

    def spelled(self, symbols: Sequence[int]) -> list[int] | None:
        """Return tokens of a text, at most one a byte; None where the vocabulary has none for a
        byte of it."""
        return self._parts(symbols, self._greedy)

    @staticmethod
    def _parts(
        symbols: Sequence[int], spell: Callable[[bytes], list[int] | None]
    ) -> list[int] | None:
        found: list[int] = []
        text = bytearray()
        for symbol in (*symbols, None):
            if symbol is not None and symbol < SPECIAL:
                text.append(symbol)
                continue
            tokens = spell(bytes(text))
            if tokens is None:
                return None
            found += tokens
            text.clear()
            if symbol is not None:
                found.append(symbol - SPECIAL)
        return found

    def _of_text(self, text: bytes) -> list[int] | None:
        n_rest = 0  # of a character that has been begun
        while n_rest < len(text) and 0x80 <= text[n_rest] < 0xC0:
            n_rest += 1
        try:
            whole = text[n_rest:].decode()
        except UnicodeDecodeError:
            return self._greedy(text)
        begun = self._greedy(text[:n_rest])
        ids = list(self._tokenizer.encode(whole, add_special_tokens=False).ids) if whole else []
        added = [symbol for one in ids for symbol in self.symbols[one]]
        if begun is None or bytes_of(added) != text[n_rest:]:
            return self._greedy(text)
        return [*begun, *ids]

    def _greedy(self, text: bytes) -> list[int] | None:
        """Take the longest token that fits, again and again."""
        found = []
        at = 0
        while at < len(text):
            for length in range(min(self.longest, len(text) - at), 0, -1):
                token = self._ids.get(text[at : at + length])
                if token is not None:
                    break
            else:
                return None
            found.append(token)
            at += length
        return found


def bytes_of(symbols: Sequence[int]) -> bytes | None:
    """Return the bytes of tokens; None where a special token is among them."""
    return bytes(symbols) if all(one < SPECIAL for one in symbols) else None


def allowed_in(mask: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the ids in a mask."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.int32)

"""Incremental detokenization and stop sequences.

Detokenizing is not a concatenation: a character can span tokens, and some decoders treat the first
token unlike the others. So the new text is what a decoding of the latest tokens, with a few before
them, shows beyond what it showed already. Half a character is never emitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Protocol

CONTEXT_TOKENS = 5
"""Prompt tokens that the first decoding sees."""
MAX_CHARACTER_TOKENS = 4
"""A UTF-8 character is at most four bytes, and a token at least one."""
MOST_TOKENS = 32
"""Most tokens decoded at once, however long the text goes on without a whole character."""
INCOMPLETE = "\ufffd"


class TokenDecoder(Protocol):
    """What detokenization needs of a tokenizer."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens, without special tokens."""
        ...

    def is_special(self, id: int) -> bool: ...


class Detokenizer:
    """Incremental detokenization after a prompt. Special tokens add no text."""

    def __init__(self, decoder: TokenDecoder, prompt: list[int]) -> None:
        self._decoder = decoder
        self._ids = _whole_characters(
            decoder, [id for id in prompt[-CONTEXT_TOKENS:] if not decoder.is_special(id)]
        )
        """The latest tokens, from one that begins with a character where there is such a one."""
        self._n_context = len(self._ids)
        """How many of them came before the last whole character was emitted."""
        self._n_shown = len(decoder.decode(self._ids))
        """Characters of their text that were emitted, or are the prompt's."""
        self._n_held = 0
        """Tokens since anything was emitted."""

    def push(self, id: int) -> str:
        """Return the text that this token completes."""
        if self._decoder.is_special(id):
            return ""
        ids = self._ids
        ids.append(id)
        text = self._decoder.decode(ids)
        if not text.endswith(INCOMPLETE) and len(text) > self._n_shown:
            new = text[self._n_shown :]
            # Context before the last whole character is not needed any more.
            self._ids = ids = ids[self._n_context :]
            self._n_context = len(ids)
            self._n_shown = len(self._decoder.decode(ids))
            self._n_held = 0
            return new
        return self._hold(text)

    def _hold(self, text: str) -> str:
        """Return the part of `text` that can be shown though no character is complete."""
        self._n_held += 1
        whole = not text.endswith(INCOMPLETE)
        # Only the last character can still change, and only if it is incomplete ...
        end = len(text) if whole else len(text) - 1
        new = text[self._n_shown : end]
        if not whole and INCOMPLETE in new and self._n_held < MAX_CHARACTER_TOKENS:
            # ... except that byte-fallback decoders show each byte of a half character like that.
            return ""
        if new:
            self._n_held = 0
            self._n_shown = end
        if len(self._ids) > MOST_TOKENS:
            # No token ended with a character for so long that one is cut: what the first bytes
            # become then is shown already, and what is not shown yet is at the very end.
            n_left = len(text) - self._n_shown
            n_cut = MOST_TOKENS // 2
            self._ids = self._ids[n_cut:]
            self._n_context = max(0, self._n_context - n_cut)
            self._n_shown = max(0, len(self._decoder.decode(self._ids)) - n_left)
        return new

    def copy(self) -> Detokenizer:
        """Return one that goes on by itself from here."""
        other = copy(self)
        other._ids = list(self._ids)
        return other

    def flush(self) -> str:
        """Return the text that was held back, at the end of the generation."""
        text = self._decoder.decode(self._ids)
        new = text[self._n_shown :]
        self._n_shown = len(text)
        return new


def _whole_characters(decoder: TokenDecoder, ids: list[int]) -> list[int]:
    """Return `ids` without the rest of a character whose beginning was cut off, if they start with
    one.

    A byte-fallback decoder shows all bytes in a row as incomplete if the first ones are.
    """
    for start in range(min(len(ids), MAX_CHARACTER_TOKENS)):
        if not decoder.decode(ids[start:]).startswith(INCOMPLETE):
            return ids[start:]
    return ids


class TextStream:
    """The text of one generation, up to its stop sequence."""

    def __init__(
        self,
        decoder: TokenDecoder,
        prompt: list[int],
        stop: tuple[str, ...] = (),
        include_stop: bool = True,
        shown: Mapping[int, str] | None = None,
        least: int = 0,
    ) -> None:
        """Start a text. `shown` are special tokens that are part of it, by name.

        A stop sequence that is complete within the first `least` tokens does not end the text.
        """
        self._detokenizer = Detokenizer(decoder, prompt)
        self._shown = shown or {}
        self._least = least
        self._n_pushed = 0
        self._stop = stop
        self._include_stop = include_stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        """Text that is not emitted yet, as it may be the beginning of a stop sequence."""
        self._seen = ""
        """The last emitted characters, in which a stop sequence may begin."""

    def push(self, id: int) -> tuple[str, bool]:
        """Return the text to emit for this token, and whether a stop sequence ends the
        generation."""
        self._n_pushed += 1
        if id in self._shown:
            # The rest of an incomplete character comes before the mark.
            text = self._detokenizer.flush() + self._shown[id]
        else:
            text = self._detokenizer.push(id)
        if not self._stop or not text:
            return text, False
        return self._scan(text)

    def end_within(self, ids: list[int]) -> int | None:
        """Return after how many of these tokens, if they are the next ones, a stop sequence ends
        the generation; None if not with any of them."""
        ahead = copy(self)
        ahead._detokenizer = self._detokenizer.copy()
        for n, id in enumerate(ids, 1):
            _, ends = ahead.push(id)
            if ends:
                return n
        return None

    def flush(self) -> str:
        """Return the rest of the text when the generation ends without a stop sequence."""
        text = self._detokenizer.flush()
        if not self._stop:
            return text
        text, _ = self._scan(text)
        held, self._held = self._held, ""
        return text + held

    def _scan(self, text: str) -> tuple[str, bool]:
        early = self._n_pushed <= self._least
        if self._include_stop:
            window = self._seen + text
            end = min(
                (at + len(stop) for stop in self._stop if (at := window.find(stop)) >= 0),
                default=-1,
            )
            if end >= 0 and not early:
                return window[len(self._seen) : end], True
            self._seen = window[-(self._longest - 1) :] if self._longest > 1 else ""
            return text, False
        window = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := window.find(stop)) >= 0]
        if found and not early:
            # The first to be complete, however the text is split into tokens.
            self._held = ""
            return window[: min(found)[1]], True
        keep = self._longest_beginning(window)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep], False

    def _longest_beginning(self, text: str) -> int:
        """Return the length of the longest end of `text` that a stop sequence begins with, not
        all."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stop):
                return length
        return 0

"""From token ids to text, one at a time: detokenization and stop sequences.

Detokenizing is not a concatenation: a character can span tokens, and some decoders treat the first
token unlike the others. So the new text is the difference of two decodings that share a few tokens
of context, as in TGI and vLLM, and half a character is never emitted.
"""

from __future__ import annotations

from typing import Protocol

CONTEXT_TOKENS = 5
"""Prompt tokens that the first decoding sees."""
MAX_CHARACTER_TOKENS = 4
"""A UTF-8 character is at most four bytes, and a token at least one."""
INCOMPLETE = "\ufffd"


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: list[int]) -> str:
        """Their text, without special tokens."""
        ...

    def is_special(self, id: int) -> bool: ...


class Detokenizer:
    """Incremental detokenization behind a prompt. Special tokens add no text."""

    def __init__(self, decoder: Decoder, prompt: list[int]) -> None:
        self._decoder = decoder
        self._ids = [id for id in prompt[-CONTEXT_TOKENS:] if not decoder.is_special(id)]
        self._emitted = len(self._ids)
        """How many of `_ids` are in text that was emitted, or in the prompt."""
        self._context = decoder.decode(self._ids)

    def push(self, id: int) -> str:
        """The text that this token completes."""
        if self._decoder.is_special(id):
            return ""
        self._ids.append(id)
        text = self._decoder.decode(self._ids)
        if not text.endswith(INCOMPLETE):
            return self._emit(text, len(self._ids))
        complete = len(self._ids) - (MAX_CHARACTER_TOKENS - 1)
        if complete > self._emitted:
            # Tokens this far back are not part of a character that may still be completed.
            return self._emit(self._decoder.decode(self._ids[:complete]), complete)
        return ""

    def flush(self) -> str:
        """What was held back, as it is: nothing follows any more."""
        if self._emitted == len(self._ids):
            return ""
        return self._emit(self._decoder.decode(self._ids), len(self._ids))

    def _emit(self, text: str, n_ids: int) -> str:
        new = text[len(self._context) :]
        self._ids = self._ids[self._emitted :]
        self._emitted = n_ids - self._emitted
        self._context = self._decoder.decode(self._ids[: self._emitted])
        return new


class TextStream:
    """The text of one generation, up to its stop sequence."""

    def __init__(
        self,
        decoder: Decoder,
        prompt: list[int],
        stop: tuple[str, ...] = (),
        include_stop: bool = True,
    ) -> None:
        self._detokenizer = Detokenizer(decoder, prompt)
        self._stop = stop
        self._include_stop = include_stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        """Text not emitted yet, for it may be the beginning of a stop sequence."""
        self._seen = ""
        """The last emitted characters, which a stop sequence may begin in."""

    def push(self, id: int) -> tuple[str, bool]:
        """The text to emit for this token, and whether a stop sequence ends the generation."""
        text = self._detokenizer.push(id)
        if not self._stop or not text:
            return text, False
        return self._scan(text)

    def flush(self) -> str:
        """What is left when the generation ends without a stop sequence."""
        text = self._detokenizer.flush()
        if not self._stop:
            return text
        text, _ = self._scan(text)
        held, self._held = self._held, ""
        return text + held

    def _scan(self, text: str) -> tuple[str, bool]:
        if self._include_stop:
            window = self._seen + text
            end = min(
                (at + len(stop) for stop in self._stop if (at := window.find(stop)) >= 0),
                default=-1,
            )
            if end >= 0:
                return window[len(self._seen) : end], True
            self._seen = window[-(self._longest - 1) :] if self._longest > 1 else ""
            return text, False
        window = self._held + text
        start = min((at for stop in self._stop if (at := window.find(stop)) >= 0), default=-1)
        if start >= 0:
            self._held = ""
            return window[:start], True
        keep = self._longest_beginning(window)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep], False

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop sequence."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

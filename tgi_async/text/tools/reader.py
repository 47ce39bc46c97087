"""Read a text that arrives in pieces as if it were complete.

Its methods are generators: they yield while the character they need has not come. So a decision
depends on the text and its end alone, never on how the text was split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A generator that yields for more text; its return value is the result."""

SPACE = " \t\n\r"
MAX_DEPTH = 64
"""Most levels of nested JSON. A deeper value is not a call."""

_IN_STRING = re.compile(r'[^"\\]+')
_IN_NUMBER = re.compile(r"[-+.0-9eE]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_SPACES = re.compile(r"[ \t\n\r]+")
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")
_WORDS = {"t": "true", "f": "false", "n": "null"}


class Reader:
    """The text so far. `at` is the place of the next character, counted from the beginning."""

    def __init__(self) -> None:
        self._text = ""
        self._base = 0
        """Place where the kept text begins."""
        self._ended = False
        self.at = 0
        self.kept: int | None = None
        """Place from which on the text is still needed; None: from `at` on."""
        self.ran_out = False
        """Whether a character past the end of the text was needed. Callers reset it."""
        self.truncated = False

    def feed(self, text: str) -> None:
        """Add a piece of the text."""
        read = (self.at if self.kept is None else self.kept) - self._base
        kept, self._text = self._text, ""
        if read > len(kept) // 2:  # not at every piece: what is kept may be long
            kept = kept[read:]
            self._base += read
        kept += text  # in place, as nothing else refers to it
        self._text = kept

    def end(self, *, truncated: bool = False) -> None:
        """End the text. `truncated`: the model did not end there."""
        self._ended = True
        self.truncated = truncated

    def slice(self, start: int, end: int | None = None) -> str:
        """Return the text from `start` to `end`, or to `at`."""
        stop = self.at if end is None else end
        return self._text[start - self._base : stop - self._base]

    def next(self, ahead: int = 0) -> Reading[str]:
        """Return the character `ahead` places on, without consuming it; empty at the end of the
        text."""
        place = self.at + ahead
        while place - self._base >= len(self._text):
            if self._ended:
                self.ran_out = True
                return ""
            yield
        return self._text[place - self._base]

    def run(self, pattern: re.Pattern[str]) -> None:
        """Consume as much of the available text as `pattern` matches, which matches any part of a
        run."""
        if found := pattern.match(self._text, self.at - self._base):
            self.at = found.end() + self._base

    def take_all(self) -> None:
        """Consume all available text."""
        self.at = self._base + len(self._text)

    def skip(self, characters: str = SPACE) -> Reading[None]:
        """Consume all that are among `characters`."""
        while (c := (yield from self.next())) and c in characters:
            start = self.at
            self.run(_SPACES)
            if self.at == start:
                self.at += 1

    def whitespace(self) -> Reading[str]:
        """Consume the next white space; return it."""
        pieces = []
        while (c := (yield from self.next())) and c in SPACE:
            start = self.at
            self.run(_SPACES)
            pieces.append(self.slice(start))
        return "".join(pieces)

    def spaced(self, option: str) -> Reading[bool]:
        """Consume `option`, with any white space, or none, where it has some and before it.

        False: it does not come next, and nothing was taken.
        """
        start = self.at
        for word in option.split():
            yield from self.skip()
            if (yield from self.literal([word])) is None:
                self.at = start
                return False
        return True

    def literal(self, options: Sequence[str]) -> Reading[str | None]:
        """Consume the first of `options` that comes next; return it, or None."""
        for option in options:
            for place, wanted in enumerate(option):
                if (yield from self.next(place)) != wanted:
                    break
            else:
                self.at += len(option)
                return option
        return None

    def until(self, marks: Sequence[str]) -> Reading[None]:
        """Consume all before the first of `marks`, or before the end."""
        firsts = {mark[0] for mark in marks}
        while c := (yield from self.next()):
            if c in firsts:
                at = self.at
                if (yield from self.literal(marks)) is not None:
                    self.at = at
                    return
            self.at += 1

    # -- JSON -----------------------------------------------------------------------------------

    def string(self) -> Reading[str | None]:
        """Read a string; return its value, or None if it is invalid. Then `at` is where it is
        wrong."""
        start = self.at
        kept, self.kept = self.kept, start if self.kept is None else self.kept
        try:
            if not (yield from self._string()):
                return None
            value: str = json.loads(self.slice(start), strict=False)
            return value
        finally:
            self.kept = kept

    def _string(self) -> Reading[bool]:
        """Accept characters that JSON wants escaped, as models write them."""
        if (yield from self.next()) != '"':
            return False
        self.at += 1
        while True:
            c = yield from self.next()
            if c == '"':
                self.at += 1
                return True
            if c == "\\":
                self.at += 1
                if not (yield from self._escaped()):
                    return False
            elif not c:
                return False
            else:
                self.run(_IN_STRING)

    def _escaped(self) -> Reading[bool]:
        c = yield from self.next()
        if not c or c not in _ESCAPES:
            return False
        self.at += 1
        if c == "u":
            for _ in range(4):
                c = yield from self.next()
                if not c or c not in _HEX:
                    return False
                self.at += 1
        return True

    def value(self) -> Reading[bool]:
        """Read one JSON value; False if it is invalid. Then `at` is where it is wrong."""
        if (yield from self.next()) not in ("{", "["):
            return (yield from self._scalar())
        return (yield from self._nested([]))

    def rest_of_object(self) -> Reading[bool]:
        """Read an object's further members, before the first of them, and its end."""
        yield from self.skip()
        if not (yield from self._member()):
            return False
        return (yield from self._nested(["{"]))

    def _nested(self, open: list[str]) -> Reading[bool]:
        """Read the rest of a value, with `open` the brackets around; before its next value."""
        while True:
            yield from self.skip()
            c = yield from self.next()
            if c and c in "{[":
                if len(open) == MAX_DEPTH:
                    return False
                self.at += 1
                open.append(c)
                yield from self.skip()
                if (yield from self.next()) != ("}" if c == "{" else "]"):
                    if c == "{" and not (yield from self._member()):
                        return False
                    continue
            elif not (yield from self._scalar()):
                return False
            # Behind a value, or right behind an opening bracket with nothing in it.
            while True:
                yield from self.skip()
                c = yield from self.next()
                if c == ",":
                    self.at += 1
                    yield from self.skip()
                    if open[-1] == "{" and not (yield from self._member()):
                        return False
                    break
                if c != ("}" if open[-1] == "{" else "]"):
                    return False
                self.at += 1
                open.pop()
                if not open:
                    return True

    def _member(self) -> Reading[bool]:
        """Read a name and its colon."""
        if not (yield from self._string()):
            return False
        yield from self.skip()
        if (yield from self.next()) != ":":
            return False
        self.at += 1
        return True

    def _scalar(self) -> Reading[bool]:
        c = yield from self.next()
        if c == '"':
            return (yield from self._string())
        if c in _WORDS and c:
            return (yield from self.literal([_WORDS[c]])) is not None
        start = self.at
        kept, self.kept = self.kept, start if self.kept is None else self.kept
        try:
            while (c := (yield from self.next())) and c in "-+.0123456789eE":
                self.run(_IN_NUMBER)
            return _NUMBER.fullmatch(self.slice(start)) is not None
        finally:
            self.kept = kept

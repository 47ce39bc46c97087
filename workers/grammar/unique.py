"""Enforce `uniqueItems` and distinct names, which needs memory that a grammar does not have.

It wraps a matcher and parses the text as it grows. From the tokens that the engine allows it
removes those that would end an item equal to an earlier one of its array, or lead to where nothing
else can come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.grammar.comparing_schemas import inlined
from workers.grammar.engine import GrammarError, Matcher
from workers.grammar.json_text import JsonText, OpenContainer, value_of
from workers.grammar.token_index import TokenIndex

FREE = 64
FREE_NUMBERS = 8
"""Number of other allowed tokens from which on some always remain."""


class UniqueMatcher:
    """A `Matcher` around an engine's, which also enforces the schemas of `contexts`."""

    remembers = True

    def __init__(
        self, inner: Matcher, tokens: TokenIndex, schemas: list[tuple[bytes, Any]]
    ) -> None:
        self._inner = inner
        self._tokens = tokens
        self._schemas = schemas
        self._longest = max(len(before) for before, _ in schemas)
        self._tail = b""
        """The end of the text outside of values."""
        self._text: JsonText | None = None
        self._is_trial = False
        self._free: set[tuple[int, bytes]] = set()
        """Beginnings of items after which many other tokens are allowed."""
        self._merged: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        self._look_for_value()

    def fill(self, mask: NDArray[np.int32]) -> None:
        """See `engine.Matcher`."""
        self._inner.fill(mask)
        text = self._text
        if text is None:
            return
        refused = self._refused(text)
        if not self._is_trial:
            refused -= self._openings(text, mask)
        refused |= self._equal(text)
        allowed = mask.copy()
        _clear(mask, refused)
        if not mask.any():
            self._fill_parts(allowed, mask, refused)

    def _openings(self, text: JsonText, mask: NDArray[np.int32]) -> set[int]:
        """Return which tokens that end an item and begin another one can be continued."""
        found = set[int]()
        compared = [frame for frame in text.frames if frame.compared]
        bits = mask.view(np.uint32)
        for token in self._tokens.opening if compared else ():
            if not bits[token // 32] >> np.uint32(token % 32) & np.uint32(1):
                continue
            key = _key(compared[-1], b"")
            if key not in self._free:
                trial = self.copy()
                trial._is_trial = True
                try:
                    trial.advance([token])
                    left = np.zeros_like(mask)
                    trial.fill(left)
                except GrammarError:
                    continue
                n = int(np.unpackbits(left.view(np.uint8)).sum())
                if n >= FREE:
                    self._free.add(key)
                elif not n:
                    continue
            found.add(token)
        return found

    def _fill_parts(
        self, allowed: NDArray[np.int32], mask: NDArray[np.int32], refused: set[int]
    ) -> None:
        """Allow prefixes of refused tokens: an engine may allow only the longest where the text is
        forced."""
        bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
        for token in map(int, np.flatnonzero(bits)[:FREE]):
            text = self._tokens.texts[token] if token < len(self._tokens.texts) else b""
            for _, part in self._tokens.within(text):
                if part not in refused:
                    mask.view(np.uint32)[part // 32] |= np.uint32(1 << part % 32)

    def advance(self, tokens: Sequence[int]) -> None:
        """See `engine.Matcher`."""
        self._inner.advance(tokens)
        for token in tokens:
            for byte in self._tokens.texts[token] if token < len(self._tokens.texts) else b"":
                self._feed(byte)

    def allows(self, tokens: Sequence[int]) -> int:
        """See `engine.Matcher`."""
        return self._inner.allows(tokens)

    def jump_forward_tokens(self) -> list[int]:
        """See `engine.Matcher`."""
        forced = self._inner.jump_forward_tokens()
        if self._text is None or not forced:
            return forced
        way = self.copy()
        for index, token in enumerate(forced):
            text = way._text
            if text is not None and token in way._refused(text) | way._equal(text):
                return forced[:index]
            way.advance([token])
        return forced

    @property
    def complete(self) -> bool:
        """See `engine.Matcher`."""
        return self._inner.complete

    @property
    def ended(self) -> bool:
        """See `engine.Matcher`."""
        return self._inner.ended

    @property
    def nbytes(self) -> int:
        """See `engine.Matcher`: what is stored here is as long as the text."""
        return self._inner.nbytes

    def copy(self) -> UniqueMatcher:
        """See `engine.Matcher`."""
        other = UniqueMatcher.__new__(UniqueMatcher)
        other.__dict__.update(self.__dict__)
        other._inner = self._inner.copy()
        other._text = None if self._text is None else self._text.copy()
        return other

    def _feed(self, byte: int) -> None:
        if self._text is not None:
            self._text.feed(byte)
            if self._text.ended:
                self._text, self._tail = None, b""
            return
        self._tail = (self._tail + bytes([byte]))[-max(1, self._longest) :]
        self._look_for_value()

    def _look_for_value(self) -> None:
        found = tuple(
            schema
            for before, schema in self._schemas
            if (self._tail.endswith(before) if before else not self._tail)
        )
        if len(found) == 1:
            self._text = JsonText(found[0], found)
        elif found:
            key = tuple(map(id, found))
            if key not in self._merged:
                self._merged[key] = [inlined(one, f"{at}.") for at, one in enumerate(found)]
            options = self._merged[key]
            defs = {name: one for option in options for name, one in option["$defs"].items()}
            self._text = JsonText({"$defs": defs}, tuple(options))

    def _refused(self, text: JsonText) -> set[int]:
        """Yield tokens that go from one item into the next, which are not checked."""
        refused = set(self._tokens.spanning)
        if any(frame.compared for frame in text.frames):
            refused.update(self._tokens.next)
        return refused & self._tokens.with_quote if text.in_string else refused

    def _equal(self, text: JsonText) -> set[int]:
        """Yield tokens that end an item equal to an earlier one, or lead to where nothing else can
        come."""
        refused = set[int]()
        for depth, frame in enumerate(text.frames):
            if frame.compared and frame.seen:
                self._compare(text, depth, frame, refused)
        return refused

    def _compare(self, text: JsonText, depth: int, frame: OpenContainer, refused: set[int]) -> None:
        begun = b"" if frame.start is None else bytes(text.written[frame.start :])
        ahead = b""
        if frame.start is None:
            if depth < len(text.frames) - 1 or text.in_string:
                return  # inside the value of a name
            if text.written.rstrip(b" ")[-1:] == b":":
                return
            ahead = {b",": b" ", b"[": b"", b"{": b""}.get(bytes(text.written[-1:]), b", ")
            if text.written[-2:] == b", ":
                ahead = b""
        ends = [ahead + end for one in frame.seen for end in ends_of(one)]
        rests = [end[len(begun) :] for end in ends if end.startswith(begun) and end != begun]
        if begun:
            self._close(text, depth, frame, begun, refused)
        for rest in rests:
            refused.update(self._tokens.that_begin(rest))
        self._keep_ways_out(frame, begun, rests, refused)

    def _close(
        self, text: JsonText, depth: int, frame: OpenContainer, begun: bytes, refused: set[int]
    ) -> None:
        """Refuse to end an item that equals one that is written in another way."""
        inside = len(text.frames) - 1 - depth
        if inside:
            closers: tuple[bytes, ...] = (b"]", b"}")
        elif text.in_string:
            if b"\\u" not in begun:
                return
            closers = (b'"',)
        elif re.search(rb"[.eE]|-0", begun):
            closers = (b",", b"]")
        else:
            return
        refused.update(
            token
            for token in self._tokens.behind
            if any(closer in self._tokens.texts[token][1:] for closer in closers)
        )
        if inside > 1 or (inside and text.in_string):
            return
        if inside:
            whole = begun + (b"]" if text.frames[-1].is_array else b"}")
        else:
            whole = begun + b'"' if text.in_string else begun
        if value_of(whole) in frame.values:
            for closer in closers:
                refused.update(self._tokens.that_begin(closer))

    def _keep_ways_out(
        self, frame: OpenContainer, begun: bytes, rests: list[bytes], refused: set[int]
    ) -> None:
        """Refuse tokens after which only an earlier item can be written."""
        stuck: dict[int, bool] = {}
        for rest in rests:
            key = _key(frame, begun + rest)
            last = len(rest) - 1 if key in self._free else self._way_out(rest, rests, key)
            for length, token in self._tokens.within(rest):
                stuck[token] = stuck.get(token, True) and length > last
        refused.update(token for token, is_stuck in stuck.items() if is_stuck)

    def _way_out(self, rest: bytes, rests: list[bytes], key: tuple[int, bytes]) -> int:
        """Return the last place along `rest` where something else is allowed; -1: none, not even
        here."""
        mask: NDArray[np.int32] = np.zeros(-(-len(self._tokens.texts) // 32), np.int32)
        for at in range(len(rest) - 1, -1, -1):
            tokens = self._tokens.of(rest[:at])
            if tokens is None:
                return len(rest) - 1
            way = self._inner.copy()
            try:
                if tokens:
                    way.advance(tokens)
                way.fill(mask)
            except GrammarError:
                continue
            along = [one[at:] for one in rests if one.startswith(rest[:at]) and len(one) > at]
            taken = {token for one in along for token in self._tokens.that_begin(one)}
            taken |= {token for one in along for _, token in self._tokens.within(one)}
            left = mask.copy()
            _clear(left, taken)
            n = int(np.unpackbits(left.view(np.uint8)).sum())
            if n:
                many = FREE if rest[-1:] in b'"]}' else FREE_NUMBERS
                if n >= many and at == len(rest) - 1:
                    self._free.add(key)
                return at
        return -1


def _key(frame: OpenContainer, text: bytes) -> tuple[int, bytes]:
    return (id(frame.schemas[0]) if frame.schemas else 0, text)


def ends_of(text: bytes) -> tuple[bytes, ...]:
    """Return the texts that would make an item equal to one, with what ends it.

    Numbers are written in many ways: what begins like the same number with a further 0 counts too.
    """
    if text[-1:] in (b'"', b"]", b"}"):
        return (text,)
    plain = value_of(text).encode() or text
    spelled = {plain, text} | ({b"-0"} if plain == b"0" else set())
    found = [one + closer for one in spelled for closer in (b",", b"]")]
    if plain[-1:].isdigit():
        found.append(plain + (b"0" if b"." in plain else b".0"))
    return tuple(found)


def _clear(mask: NDArray[np.int32], tokens: Iterable[int]) -> None:
    bits = mask.view(np.uint32)
    for token in tokens:
        bits[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)

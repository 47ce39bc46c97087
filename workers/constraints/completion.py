"""Find a short way to complete a text, by walking a matcher greedily.

It is for grammars without an expression (see `foresight`): those that clients wrote.
Which tokens complete a text soonest is a shortest path in an automaton that no engine shows. Two
walks are made, and the shorter one is taken. Both close what they can. Otherwise one takes the
longest token, which serves texts of a least length, and the other, unless it is within free text,
the token after which something can be closed soonest, which serves choices and numbers. Both look
at the matcher's state only, so the way from a later state of a walk is the rest of that walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.grammar.engine import GrammarError, Matcher

CLOSERS = frozenset('"}])>')
CONTENT = "qw"
"""Where both of these letters are allowed, the text is inside content: `}` is a part of it there,
and `"` ends it. Elsewhere `}` ends something, and `"` begins it."""
N_LONG = 256
"""How many of the longest plain tokens are tried."""
MOST = 1024
"""Most tokens of a completion."""
N_TRIED = 12
"""Tokens whose successors are tried at one place."""
DEPTH = 2
"""How many of them in a row: two digits make any number a multiple of one below a hundred."""
FAR = 10_000

MOST_LOOKS = 1000
"""Most matcher states visited in one walk: some 50 ms."""

Mask = NDArray[np.int32]


class Hints(NamedTuple):
    """What a grammar says that a matcher does not show."""

    endings: Sequence[list[int]] = ()
    """Tokens that end something wherever they are allowed."""
    literals: Sequence[list[int]] = ()
    """Tokens that may end something; each is tried once in a walk."""
    avoided: Mask | None = None
    """Tokens that may begin something within a complete text."""


NO_HINTS = Hints()


class Looks:
    """How many visits a walk has left."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MOST_LOOKS


Pick = Callable[[Matcher, Mask, Looks], int | None]


class Completer:
    """Finds completions in one vocabulary."""

    def __init__(self, texts: Sequence[str], end_ids: Sequence[int]) -> None:
        """Make a completer. `texts`: what each token id adds to a text; empty for special
        tokens."""
        self._end_ids = frozenset(end_ids)
        self._texts = texts
        self._n_words = -(-len(texts) // 32)
        known = [(text, i) for i, text in enumerate(texts) if text]
        unclear = np.zeros(32 * self._n_words, np.bool_)
        unclear[: len(texts)] = [not text for text in texts]
        unclear[[one for one in end_ids if one < len(unclear)]] = False
        self._unclear = np.packbits(unclear, bitorder="little").view(np.int32)
        """Tokens that are no text by themselves, such as parts of a character."""

        def ids(chosen: list[tuple[str, int]], n: int | None = None) -> NDArray[np.int64]:
            longest_first = sorted(chosen, key=lambda one: (-len(one[0]), one[1]))
            return np.asarray([i for _, i in longest_first[:n]], np.int64)

        closers = [one for one in known if CLOSERS.issuperset(one[0])]
        self._content_closers = ids([one for one in closers if one[0][0] == '"'])
        brackets = ids([one for one in closers if one[0][0] != '"'])
        quotes = ids([one for one in known if one[0] in ('""', '"')])
        commas = ids([one for one in known if one[0] in (",", ", ")])
        self._closers = np.concatenate([brackets, commas, quotes])
        self._content = ids([one for one in known if one[0] in CONTENT])
        plain = [one for one in known if one[0].isascii() and one[0].isalnum()]
        self._long = ids(plain, N_LONG)
        single = [one for one in known if len(one[0]) == 1 and one[0].isascii()]
        single.sort(key=lambda one: (not one[0].isalnum(), one[0]))
        self._single = np.asarray([i for _, i in single], np.int64)

    def shortest(
        self,
        matcher: Matcher,
        most: int,
        mask: Mask,
        hints: Hints = NO_HINTS,
        enough: int = 0,
    ) -> list[int] | None:
        """Return the tokens of a short completion, at most `most`; None if none was found.

        One of `enough` tokens will do. `mask` is room to work in.
        """
        found: list[int] | None = None
        most = min(most, MOST)
        for pick in (self._longest, self._least_or_longest):
            try:
                way = self._walk(matcher, most, pick, mask, hints)
            except GrammarError:  # a limit of the engine, on an optional path
                continue
            if way is not None:
                found, most = way, len(way) - 1
                if len(way) <= enough:
                    break
        return found

    def may_go_on(self, matcher: Matcher, mask: Mask, hints: Hints = NO_HINTS) -> bool:
        """Return whether a complete text seems to stay complete whatever whole characters come
        next.

        It is asked of some of the tokens that may, but for those to be avoided. `mask` is room to
        work in.
        """
        try:
            matcher.fill(mask)
            self.keep_whole(mask, hints)
            tried = np.concatenate(
                [_allowed(ids, mask)[:N_TRIED] for ids in (self._single, self._long, self._closers)]
            )
            for token in [int(one) for one in tried] or self._any(mask):
                after = matcher.copy()
                after.advance([token])
                if not after.complete:
                    return False
        except GrammarError:
            return False
        return True

    def keep_whole(self, mask: Mask, hints: Hints = NO_HINTS) -> None:
        """Remove from a mask what would leave a character, or what it begins, incomplete."""
        mask[: self._n_words] &= ~self._unclear
        if hints.avoided is not None:
            mask[: self._n_words] &= ~hints.avoided

    def with_letters(self, letters: Iterable[str]) -> Mask:
        """Return the tokens whose texts have any of these letters."""
        found = np.zeros(32 * self._n_words, np.bool_)
        for letter in letters:
            found[[i for i, text in enumerate(self._texts) if letter in text]] = True
        return np.packbits(found, bitorder="little").view(np.int32)

    def _walk(
        self, start: Matcher, most: int, pick: Pick, mask: Mask, hints: Hints
    ) -> list[int] | None:
        matcher = start.copy()
        hints = hints._replace(literals=list(hints.literals))
        way: list[int] = []
        looks = Looks()
        while not matcher.complete:
            tokens = matcher.jump_forward_tokens()
            if tokens:
                matcher.advance(tokens)
            else:
                matcher, tokens = self._step(matcher, pick, mask, hints, looks)
            if not tokens or len(way) + len(tokens) > most or looks.left <= 0:
                return None
            way += tokens
        return way

    def _step(
        self,
        matcher: Matcher,
        pick: Pick,
        mask: Mask,
        hints: Hints,
        looks: Looks,
    ) -> tuple[Matcher, list[int]]:
        matcher.fill(mask)
        for ending in hints.endings:
            if (after := _after(matcher, ending)) is not None:
                behind = np.zeros_like(mask)
                after.fill(behind)
                if not np.array_equal(mask, behind):  # else it is content, as in a JSON string
                    return after, ending
        closers = self._content_closers if self._in_content(mask) else self._closers
        picked = _first(closers, mask)
        if picked is None:
            for place, literal in enumerate(hints.literals):
                possible = _allowed(np.asarray(literal[:1], np.int64), mask).size
                if possible and (after := _after(matcher, literal)) is not None:
                    del hints.literals[place]  # type: ignore[attr-defined]  # a walk's own list
                    return after, literal
            picked = pick(matcher, mask, looks)
        if picked is None:
            return matcher, []
        matcher.advance([picked])
        return matcher, [picked]

    def _longest(self, matcher: Matcher, mask: Mask, looks: Looks) -> int | None:
        for ids in (self._long, self._single):
            picked = _first(ids, mask)
            if picked is not None:
                return picked
        return next(iter(self._any(mask)), None)

    def _least_or_longest(self, matcher: Matcher, mask: Mask, looks: Looks) -> int | None:
        if self._in_content(mask):
            return self._longest(matcher, mask, looks)
        for depth in range(DEPTH):
            owed, token = min(
                (
                    (self._owed(after, mask, depth, looks), token)
                    for token, after in self._next(matcher, mask)
                ),
                default=(0, None),
            )
            if owed < FAR:
                break
        return token

    def _owed(self, matcher: Matcher, mask: Mask, depth: int, looks: Looks) -> int:
        """Return how many tokens it takes from here to where something can be closed, as far as is
        seen within so many chosen ones; `FAR` and more if it is further."""
        forced = matcher.jump_forward_tokens()
        if forced:
            matcher.advance(forced)
        if matcher.complete:
            return len(forced)
        looks.left -= 1
        if looks.left <= 0:
            return FAR
        matcher.fill(mask)
        if self._in_content(mask) or _first(self._closers, mask) is not None:
            return 1 + len(forced)
        if not depth:
            return FAR + len(forced)
        return min(
            (
                1 + len(forced) + self._owed(after, mask, depth - 1, looks)
                for _, after in self._next(matcher, mask)
            ),
            default=FAR,
        )

    def _next(self, matcher: Matcher, mask: Mask) -> list[tuple[int, Matcher]]:
        """Return some allowed next tokens, each with the state after it."""
        matcher.fill(mask)
        allowed = _allowed(self._single, mask)[:N_TRIED]
        found = []
        for token in [int(one) for one in allowed] or self._any(mask):
            after = matcher.copy()
            after.advance([token])
            found.append((token, after))
        return found

    def _in_content(self, mask: Mask) -> bool:
        return len(_allowed(self._content, mask)) == len(CONTENT)

    def _any(self, mask: Mask) -> list[int]:
        """Return some allowed tokens, where none of the usual candidates is allowed."""
        words = np.flatnonzero(mask[: self._n_words])[: 2 * N_TRIED]
        bits = np.unpackbits(mask[words].view(np.uint8), bitorder="little").reshape(-1, 32)
        line, bit = np.nonzero(bits)
        ids = [int(one) for one in words[line] * 32 + bit]
        return [one for one in ids if one not in self._end_ids][:N_TRIED]


def _after(matcher: Matcher, tokens: list[int]) -> Matcher | None:
    """Return the states after these tokens, where they are allowed."""
    after = matcher.copy()
    try:
        after.advance(tokens)
    except GrammarError:
        return None
    return after


def _allowed(ids: NDArray[np.int64], mask: Mask) -> NDArray[np.int64]:
    allowed: NDArray[np.int64] = ids[(mask[ids >> 5] >> (ids & 31)) & 1 == 1]
    return allowed


def _first(ids: NDArray[np.int64], mask: Mask) -> int | None:
    allowed = _allowed(ids, mask)
    return int(allowed[0]) if allowed.size else None

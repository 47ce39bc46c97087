"""How many tokens a text still needs after each allowed token.

The engine says which tokens are allowed; the expression of the same grammar says what can follow
each of them. So exactly those that leave too few tokens for the rest are removed from the mask.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from tgi_async.grammar.grammar import Grammar
from workers.constraints.expressions import ENDLESS, Expressions
from workers.constraints.language import SpecialId, language
from workers.constraints.mask_cache import MaskCache
from workers.constraints.nodes import Expression, TooComplex
from workers.constraints.token_counts import TokenCounts
from workers.constraints.token_walks import TokenWalks, Walk
from workers.constraints.tokens import TokenTable
from workers.grammar.engine import Matcher

Mask = NDArray[np.int32]

MAX_COST = 8192
"""Bytes of the longest completion whose tokens are counted."""
MAX_COUNTED = 8192
"""Most bytes whose tokens are counted for one mask: some 5 ms."""
PLAIN = 12
"""Mean bytes of a token up to which counting a completion's tokens is worthwhile."""
MAX_DERIVED = 20_000
"""Most derivatives that are kept, of the texts so far."""
MAX_WAYS = 1024
"""Most completions that are kept."""


class Foresight:
    """The foresight of one grammar. Thread-safe."""

    def __init__(self, tokens: TokenTable, grammar: Grammar, special_id: SpecialId) -> None:
        """Raises TooComplex."""
        self._tokens = tokens
        self._lock = threading.RLock()
        self._expressions = Expressions(tokens.fillers)
        try:
            self.start: Expression = language(self._expressions, grammar, special_id)
        except (RecursionError, UnicodeEncodeError, OverflowError) as error:
            raise TooComplex from error
        self._counts = TokenCounts(self._expressions, tokens)
        self._masks = MaskCache(self._expressions, tokens.longest)
        self.least = self._expressions.cost(self.start)
        """Bytes of the shortest text."""
        self._n_first = len(self._expressions)
        self._ways: dict[Expression, list[int] | None] = {}
        self._left_to_count = MAX_COUNTED
        self._walks = TokenWalks(self._expressions, tokens)
        self.known_mask(self.start)  # compute the common beginning of all texts now

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        ways = sum(8 * len(way) for way in self._ways.values() if way) + 200 * len(self._ways)
        known = self._expressions.nbytes + self._counts.nbytes + self._masks.nbytes
        return known + self._walks.nbytes + ways

    @property
    def is_crowded(self) -> bool:
        """Whether new texts should begin with a new one, as this one has grown too large."""
        return len(self._expressions) > self._n_first + MAX_DERIVED

    def after(self, node: Expression, tokens: list[int]) -> Expression | None:
        """Return what may follow these tokens; None where it is not known."""
        with self._lock:
            self._expressions.begin()
            try:
                for token in tokens:
                    node = self._expressions.after_text(node, self._tokens.symbols[token])
            except (TooComplex, RecursionError, IndexError):
                return None
            return None if node is self._expressions.nothing else node

    def known_mask(self, node: Expression) -> Mask | None:
        """Return the engine's mask of this expression, if it is known; then there are no
        jump-forward tokens.

        It cannot be written to.
        """
        with self._lock:
            try:
                return self._masks.get(node)
            except (TooComplex, RecursionError):
                return None

    def fill(self, node: Expression, matcher: Matcher, mask: Mask) -> None:
        """Have the engine write its mask of this expression, without jump-forward tokens, and keep
        it.

        Raises GrammarError.
        """
        matcher.fill(mask)
        if not matcher.remembers:
            with self._lock:
                try:
                    self._masks.put(node, mask)
                except (TooComplex, RecursionError):
                    return

    def way(self, node: Expression) -> list[int] | None:
        """Return the tokens of the shortest text from here; None if none is known.

        Of several that have as few bytes, one that has few tokens.
        """
        with self._lock:
            if node not in self._ways:
                if len(self._ways) >= MAX_WAYS:
                    self._ways.clear()
                try:
                    self._ways[node] = self._way(node)
                except (TooComplex, RecursionError):
                    return None
            return self._ways[node]

    def _way(self, node: Expression) -> list[int] | None:
        if self._expressions.cost(node) > MAX_COST:
            return self._counts.way(node) if self._counts.enough(node) <= MAX_COST else None
        texts = {
            self._expressions.least(node, one): None for one in range(len(self._tokens.fillers))
        }
        ways = [self._tokens.of(text) for text in texts]
        ways.append(self._counts.way(node))
        return min((way for way in ways if way is not None), key=len, default=None)

    def fits_from_start(self, room: int) -> bool:
        """Return whether a whole text fits into so many tokens."""
        with self._lock:
            if min(self.least, self._counts.enough(self.start)) <= room:
                return True
        way = self.way(self.start)
        return way is not None and len(way) <= room

    def most(self, node: Expression) -> int:
        """Return in how many tokens a text can be completed wherever it goes from here; `ENDLESS`
        and more if that is not known."""
        with self._lock:
            self._expressions.begin()
            try:
                return self._counts.most(node)
            except (TooComplex, RecursionError):
                return ENDLESS

    def fits(self, node: Expression, room: int) -> bool:
        """Return whether a text can be completed within so many tokens."""
        with self._lock:
            self._expressions.begin()
            self._left_to_count = MAX_COUNTED
            return self._fits(node, room)

    def _fits(self, node: Expression, room: int) -> bool:
        try:
            cost = self._expressions.cost(node)
        except (TooComplex, RecursionError):
            return False
        if cost <= room:
            return True  # a token has a byte or more
        if self._counts.enough(node) <= room:
            return True
        if cost > room * PLAIN:
            return False
        self._left_to_count -= cost
        if self._left_to_count < 0:
            return False
        way = self.way(node)
        return way is not None and len(way) <= room

    def due(self, node: Expression, left: int, way: list[int]) -> list[int] | None:
        """Return the shortest completion, where the `left` tokens have room for nothing else.

        `way` is a completion that is known; empty: none is.

        It is taken at once where it needs tokens of several bytes: which other tokens would do as
        well then takes counting those of many texts.
        """
        with self._lock:
            self._expressions.begin()
            try:
                if self._expressions.cost(node) <= left or self._counts.most(node) < left:
                    return None
            except (TooComplex, RecursionError):
                return None
            due = way or self.way(node) or []
            return due if len(due) == left else None

    def narrow(self, node: Expression, left: int, mask: Mask, way: list[int]) -> list[int] | None:
        """Remove tokens from a mask after which the text does not fit into the `left` tokens.

        `way` is a completion that is known; empty: none is. Return it, or the one that was needed;
        None where the engine does not let it in, so that the expression is not the engine's.
        """
        with self._lock:
            self._expressions.begin()
            if left > self._counts.most(node):
                return way
            given = mask[: self._tokens.n_words]
            walk = self._walks.of(node, given)
            if not len(walk.ids) or walk.costs[-1] < left:
                return way
            self._clear(mask, self._late(walk, left - 1))
            way = way or self.way(node) or []
            if way and len(way) <= left:
                word, bit = way[0] >> 5, np.uint32(1 << (way[0] & 31))
                if not walk.mask.view(np.uint32)[word] & bit:
                    return None
                mask.view(np.uint32)[word] |= bit
            return way

    def _late(self, walk: Walk, room: int) -> NDArray[np.int32]:
        """Return the tokens after which the text does not fit into so many."""
        self._left_to_count = MAX_COUNTED
        return self._walks.late(walk, room, lambda node: self._fits(node, room))

    def _clear(self, mask: Mask, ids: NDArray[np.int32]) -> None:
        bits = np.zeros(32 * self._tokens.n_words, np.bool_)
        bits[ids] = True
        mask[: self._tokens.n_words] &= ~np.packbits(bits, bitorder="little").view(np.int32)

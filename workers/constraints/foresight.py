"""How many tokens a text still needs, after each token that may come next.

The engine says which tokens may come; the expression of the same grammar says what each of them
leads to. So those that leave too few tokens for the rest can be left out, and no others.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from tgi_async.grammar.grammar import Grammar
from workers.constraints.expressions import (
    ALL_BYTES,
    ENDLESS,
    SPECIAL,
    Expressions,
    Node,
    TooComplex,
)
from workers.constraints.language import SpecialId, language
from workers.constraints.tokens import TokenTable, allowed_in

Mask = NDArray[np.int32]

MOST = 1024
"""Tokens of the longest completion that is looked for."""
MAX_STATES = 1024
"""Whose rows are kept, 0.5 kB each."""
MAX_WAYS = 4096
"""Completions that are kept."""
MANY = 2_000
"""Allowed tokens whose walk is worth keeping."""
MAX_WALKS = 4

DEAD = 0


class _Full(Exception):
    """There are more states than are kept."""


class Foresight:
    """For one grammar. Thread-safe."""

    def __init__(self, tokens: TokenTable, grammar: Grammar, special_id: SpecialId) -> None:
        """Raises TooComplex."""
        self._tokens = tokens
        self._lock = threading.RLock()
        self._expressions = Expressions(tokens.fillers)
        try:
            self.start: Node = language(self._expressions, grammar, special_id)
        except RecursionError as error:
            raise TooComplex from error
        self._ways: dict[Node, list[int] | None] = {}
        self._walks: OrderedDict[Node, tuple[NDArray[np.int64], NDArray[np.int16]]] = OrderedDict()
        self._forget()

    def after(self, node: Node, tokens: list[int]) -> Node | None:
        """What may follow these tokens; None where it is not known."""
        with self._lock:
            try:
                for token in tokens:
                    for symbol in self._tokens.symbols[token]:
                        node = self._expressions.after(node, symbol)
            except (TooComplex, RecursionError, IndexError):
                return None
            return None if node is self._expressions.nothing else node

    def way(self, node: Node) -> list[int] | None:
        """The tokens of the shortest text from here; None if none is known.

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

    def _way(self, node: Node) -> list[int] | None:
        if self._expressions.cost(node) >= ENDLESS:
            return None
        texts = {
            self._expressions.least(node, one): None for one in range(len(self._tokens.fillers))
        }
        ways = [way for text in texts if (way := self._tokens.of(text)) is not None]
        return min(ways, key=len, default=None)

    def fits(self, node: Node, room: int) -> bool:
        """Whether a text can be completed within so many tokens."""
        with self._lock:
            try:
                cost = self._expressions.cost(node)
            except (TooComplex, RecursionError):
                return False
            if cost <= room:
                return True  # a token has a byte or more
            if cost > min(room, MOST) * self._tokens.longest:
                return False
            way = self.way(node)
            return way is not None and len(way) <= min(room, MOST)

    def narrow(self, node: Node, room: int, mask: Mask) -> None:
        """Leave tokens out of a mask after which the text does not fit into `room` tokens."""
        with self._lock:
            every = allowed_in(mask, self._tokens.n_words)
            ids = every[self._tokens.lengths[every] > 0]
            special = [int(one) for one in every[self._tokens.lengths[every] == 0]]
            self._clear(mask, [one for one in special if not self._fits_behind(node, one, room)])
            try:
                ids, states = self._walk(node, ids)
            except (TooComplex, RecursionError, _Full):
                self._clear(mask, ids)
                return
            late = [
                state
                for state in np.flatnonzero(np.bincount(states, minlength=1)).tolist()
                if state == DEAD or not self.fits(self._nodes[state], room)
            ]
            if late:
                self._clear(mask, ids[np.isin(states, late)])

    def _fits_behind(self, node: Node, token: int, room: int) -> bool:
        if token in self._tokens.end_ids:
            return True
        after = self.after(node, [token])
        return after is not None and self.fits(after, room)

    def _clear(self, mask: Mask, ids: NDArray[np.int64] | list[int]) -> None:
        bits = np.zeros(32 * self._tokens.n_words, np.bool_)
        bits[ids] = True
        mask[: self._tokens.n_words] &= ~np.packbits(bits, bitorder="little").view(np.int32)

    # Where tokens lead to

    def _forget(self) -> None:
        nothing = self._expressions.nothing
        self._nodes: list[Node] = [nothing]
        self._index: dict[Node, int] = {nothing: DEAD}
        self._rows = np.zeros((MAX_STATES, SPECIAL), np.int16)
        self._built = np.zeros(MAX_STATES, np.bool_)
        self._built[DEAD] = True
        self._walks.clear()

    def _walk(
        self, node: Node, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """Tokens, and the states that they lead to."""
        known = self._walks.get(node)
        if known is not None and len(known[0]) == len(ids):
            self._walks.move_to_end(node)
            return known
        if len(self._nodes) > MAX_STATES // 2:
            self._forget()
        states = np.full(len(ids), self._state(node), np.int16)
        lengths = self._tokens.lengths[ids]
        moving = np.arange(len(ids))
        for place in range(self._tokens.bytes.shape[1]):
            moving = moving[lengths[moving] > place]
            if not len(moving):
                break
            now = states[moving]
            for state in np.flatnonzero(np.bincount(now)).tolist():
                if not self._built[state]:
                    self._build(state)
            now = self._rows[now, self._tokens.bytes[ids[moving], place]]
            states[moving] = now
            moving = moving[now != DEAD]
        states[moving[lengths[moving] > self._tokens.bytes.shape[1]]] = DEAD
        if len(ids) >= MANY:
            self._walks[node] = ids, states
            while len(self._walks) > MAX_WALKS:
                self._walks.popitem(last=False)
        return ids, states

    def _state(self, node: Node) -> int:
        found = self._index.get(node)
        if found is None:
            if len(self._nodes) >= MAX_STATES:
                self._forget()
                raise _Full
            found = self._index[node] = len(self._nodes)
            self._nodes.append(node)
        return found

    def _build(self, state: int) -> None:
        row = self._rows[state]
        for mask, following in self._expressions.steps(self._nodes[state]):
            raw = np.frombuffer((mask & ALL_BYTES).to_bytes(SPECIAL // 8, "little"), np.uint8)
            row[np.unpackbits(raw, bitorder="little").view(np.bool_)] = self._state(following)
        self._built[state] = True

"""The states after all tokens of a mask, visiting each common prefix once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.constraints.expressions import ENDLESS, Expressions
from workers.constraints.nodes import ALL_BYTES, SPECIAL, Expression, TooComplex
from workers.constraints.tokens import TokenTable, allowed_in

Mask = NDArray[np.int32]

MAX_STATES = 1024
"""Most states whose rows are kept, 0.5 kB each."""
MAX_WALKS = 64
MAX_WALKED = 200_000
"""Most tokens of all walks that are kept, 6 bytes each."""

DEAD = 0


class _Full(Exception):
    """There are more states than are kept."""


class Walk(NamedTuple):
    """The states after the tokens of a mask."""

    mask: Mask
    ids: NDArray[np.int32]
    """Token ids, in the order of `costs`."""
    costs: NDArray[np.int64]
    """[ids]: bytes of the shortest completion after each token, ascending."""
    states: NDArray[np.int16]
    """[ids]: the state after each token, by its index in a table."""


class TokenWalks:
    """The walks of one grammar. Not thread-safe."""

    def __init__(self, expressions: Expressions, tokens: TokenTable) -> None:
        self._expressions = expressions
        self._tokens = tokens
        self._walks: OrderedDict[Expression, Walk] = OrderedDict()
        self._forget()

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        walked = sum(14 * len(one.ids) + one.mask.nbytes for one in self._walks.values())
        return self._rows.nbytes + walked

    def of(self, node: Expression, mask: Mask) -> Walk:
        """Return the states after the tokens in the mask. Beyond the limits they are all dead."""
        walk = self._walks.get(node)
        if walk is not None and np.array_equal(walk.mask, mask):
            return walk
        try:
            walk = self._tried(node, mask)
        except (TooComplex, RecursionError, _Full):
            return self._unknown(mask)
        self._keep(node, walk)
        return walk

    def late(self, walk: Walk, room: int, fits: Callable[[Expression], bool]) -> NDArray[np.int32]:
        """Return the tokens after which so many bytes are not enough, and the rest does not fit."""
        first = int(np.searchsorted(walk.costs, room, side="right"))
        ids, states = walk.ids[first:], walk.states[first:]
        late = np.zeros(MAX_STATES, np.bool_)
        for state in self._by_cost(states):
            late[state] = state == DEAD or not fits(self._nodes[state])
        return ids[late[states]]

    def _unknown(self, mask: Mask) -> Walk:
        """Return a walk after whose tokens no text is known to fit."""
        ids = allowed_in(mask & ~self._tokens.ends)
        dead = np.full(len(ids), DEAD, np.int16)
        return Walk(mask.copy(), ids, np.full(len(ids), ENDLESS), dead)

    def _forget(self) -> None:
        nothing = self._expressions.nothing
        self._nodes: list[Expression] = [nothing]
        self._index: dict[Expression, int] = {nothing: DEAD}
        self._rows = np.zeros((MAX_STATES, SPECIAL), np.int16)
        self._built = np.zeros(MAX_STATES, np.bool_)
        self._built[DEAD] = True
        self._walks.clear()

    def _keep(self, node: Expression, walk: Walk) -> None:
        self._walks[node] = walk
        self._walks.move_to_end(node)
        while len(self._walks) > 1 and (
            len(self._walks) > MAX_WALKS
            or sum(len(one.ids) for one in self._walks.values()) > MAX_WALKED
        ):
            self._walks.popitem(last=False)

    def _tried(self, node: Expression, mask: Mask) -> Walk:
        try:
            return self._walked(node, mask)
        except _Full:
            self._forget()
            return self._walked(node, mask)

    def _walked(self, node: Expression, mask: Mask) -> Walk:
        tokens = self._tokens
        ids = allowed_in(mask & ~tokens.ends)
        reached = np.full(tokens.trie.n_prefixes, DEAD, np.int16)
        """The state after each prefix, by the prefix's index."""
        reached[0] = self._state(node)
        before, first = reached[:1], 1
        for level in tokens.trie.levels:
            for state in _distinct(before):
                if not self._built[state]:
                    self._build(state)
            now = reached[first : first + len(level.bytes)]
            now[:] = self._rows[before[level.parents], level.bytes]
            before = now
            first += len(now)
            if not now.any():
                break
        states = reached[tokens.trie.ends[ids]]
        for place in np.flatnonzero(tokens.silent[ids]).tolist():
            after = self._after(node, int(ids[place]))
            states[place] = DEAD if after is None else self._state(after)
        ranks = np.zeros(MAX_STATES, np.int16)
        costs = np.zeros(MAX_STATES, np.int64)
        for rank, state in enumerate(self._by_cost(states)):
            ranks[state] = rank
            costs[state] = self._cost(state)
        order = np.argsort(ranks[states], kind="stable")
        states = states[order]
        return Walk(mask.copy(), ids[order], costs[states], states)

    def _by_cost(self, states: NDArray[np.int16]) -> list[int]:
        """Return each of them once, the cheapest first."""
        return sorted(_distinct(states), key=self._cost)

    def _cost(self, state: int) -> int:
        return ENDLESS if state == DEAD else self._expressions.cost(self._nodes[state])

    def _state(self, node: Expression) -> int:
        found = self._index.get(node)
        if found is None:
            if len(self._nodes) >= MAX_STATES:
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

    def _after(self, node: Expression, token: int) -> Expression | None:
        try:
            return self._expressions.after_text(node, self._tokens.symbols[token])
        except (TooComplex, RecursionError, IndexError):
            return None


def _distinct(states: NDArray[np.int16]) -> list[int]:
    there = np.zeros(MAX_STATES, np.bool_)
    there[states] = True
    found: list[int] = np.flatnonzero(there).tolist()
    return found

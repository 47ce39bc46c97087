"""Automata of regular expressions: their intersection and complement.

They are written as an expression again, without anchors inside and without looking around, as
engines read it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from tgi_async.grammar.characters import LAST, Ranges, union
from tgi_async.grammar.schema.regex import (
    WORD,
    Ahead,
    Nfa,
    NotRegular,
    nfa_of,
)

MOST_STATES = 300
MOST_STEPS = 20_000
"""Most steps of one construction; each state takes as many as there are kinds of characters."""
LONGEST = 20_000
"""Most characters of an expression that is written."""
SURROGATES = (0xD800, 0xDFFF)
BEFORE = (None, False, True)
"""What is known of the character before a position: there is none, or whether it is a word
character."""

Config = tuple[int, frozenset[tuple[int, int]]]
"""A state, and which expressions must still match from here, and their progress."""
Subset = tuple[frozenset[Config], bool | None]
"""With it, whether the last character is a word character; None at the beginning."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """A deterministic automaton. It begins in state 0; `steps` has the next state for each kind of
    characters."""

    bounds: tuple[int, ...]
    """The first character of each kind."""
    steps: tuple[tuple[int, ...], ...]
    accepting: frozenset[int]

    def step(self, state: int, char: int) -> int:
        return self.steps[state][bisect_right(self.bounds, char) - 1]

    def negated(self) -> Automaton:
        """Return the complement."""
        others = frozenset(range(len(self.steps))) - self.accepting
        return Automaton(self.bounds, self.steps, others)

    def intersect(self, other: Automaton) -> Automaton:
        """Return the intersection. Raises NotRegular."""
        bounds = tuple(sorted({*self.bounds, *other.bounds}))

        def successors(pair: tuple[int, int]) -> list[tuple[int, int]]:
            return [(self.step(pair[0], char), other.step(pair[1], char)) for char in bounds]

        pairs, steps = _explore((0, 0), successors)
        accepting = frozenset(
            index
            for index, (one, two) in enumerate(pairs)
            if one in self.accepting and two in other.accepting
        )
        return Automaton(bounds, steps, accepting).reduced()

    @property
    def is_empty(self) -> bool:
        return not self.accepting

    def reduced(self) -> Automaton:
        """Return an equivalent automaton with as few states as possible."""
        group = [int(state in self.accepting) for state in range(len(self.steps))]
        n = len(set(group))
        while True:
            keys = [
                (group[state], tuple(group[target] for target in targets))
                for state, targets in enumerate(self.steps)
            ]
            numbers: dict[object, int] = {}
            group = [numbers.setdefault(key, len(numbers)) for key in keys]
            if len(numbers) == n:
                break
            n = len(numbers)
        steps: list[tuple[int, ...]] = [()] * n
        for state, targets in enumerate(self.steps):
            steps[group[state]] = tuple(group[target] for target in targets)
        return Automaton(
            self.bounds, tuple(steps), frozenset(group[state] for state in self.accepting)
        )

    def pattern(self) -> str:
        """Return an expression of the whole text. Raises NotRegular for one that is too long."""
        return f"^(?:{_Writer(self).written()})$"


@lru_cache(maxsize=512)
def automaton(pattern: str, wide: bool = False) -> Automaton:
    """Return the texts in which it matches somewhere; `wide`: in some dialect. Raises
    NotRegular."""
    return _determined(nfa_of(pattern, wide))


def _explore(
    start: T, successors: Callable[[T], Iterable[T]]
) -> tuple[list[T], tuple[tuple[int, ...], ...]]:
    """Return all states reachable from one, and their successors' numbers. Raises NotRegular."""
    numbers = {start: 0}
    states = [start]
    steps: list[tuple[int, ...]] = []
    n_steps = 0
    while len(steps) < len(states):
        targets = []
        for target in successors(states[len(steps)]):
            if target not in numbers:
                if len(states) == MOST_STATES:
                    raise NotRegular("its automaton is too large")
                numbers[target] = len(states)
                states.append(target)
            targets.append(numbers[target])
        n_steps += len(targets)
        if n_steps > MOST_STEPS:
            raise NotRegular("its automaton is too large")
        steps.append(tuple(targets))
    return states, tuple(steps)


class _Subsets:
    """The subset construction of a deterministic automaton."""

    def __init__(self, nfa: Nfa) -> None:
        self._nfa = nfa
        labels = [label for edges in nfa.edges for label, _ in edges]
        self._looks = [label for label in labels if isinstance(label, Ahead)]
        self._ahead = [_ahead(label, before) for label in self._looks for before in BEFORE]
        inner = [label for look in self._looks for edges in look.nfa.edges for label, _ in edges]
        self._words = any(label in ("b", "B") for label in (*labels, *inner))
        bounds = {0, *(SURROGATES[0], SURROGATES[1] + 1)}
        sets = [label for label in labels if isinstance(label, tuple)]
        for one in [*sets, *([WORD] if self._words else [])]:
            bounds |= {low for low, _ in one} | {high + 1 for _, high in one if high < LAST}
        for ahead in self._ahead:
            bounds |= set(ahead.bounds)
        self.bounds = tuple(sorted(bounds))
        self._taking = [
            [
                (target, [kind for kind, char in enumerate(self.bounds) if _has(label, char)])
                for label, target in edges
                if isinstance(label, tuple)
            ]
            for edges in nfa.edges
        ]
        """By state, the next states and with which kinds of characters."""
        self._is_word = [_has(WORD, char) for char in self.bounds]

    def automaton(self, before: bool | None = None) -> Automaton:
        """Return the automaton. `before`: what is known of the character before the text, as in a
        `Subset`."""
        start: Subset = (frozenset({(self._nfa.start, frozenset())}), before)
        subsets, steps = _explore(start, self._successors)
        accepting = frozenset(
            index for index, subset in enumerate(subsets) if self._accepts(subset)
        )
        return Automaton(self.bounds, steps, accepting).reduced()

    def _successors(self, subset: Subset) -> Iterable[Subset]:
        configs, before = subset
        closed = {
            word: self._closed(configs, before, word)
            for word in ({True, False} if self._words else {False})
        }
        found: list[set[Config]] = [set() for _ in self.bounds]
        for word, configs_here in closed.items():
            for state, needed in configs_here:
                for target, kinds in self._taking[state]:
                    for kind in kinds:
                        if self._words and self._is_word[kind] != word:
                            continue
                        behind = self._advanced(needed, self.bounds[kind]) if needed else needed
                        if behind is not None:
                            found[kind].add((target, behind))
        whole = (self._nfa.end, frozenset[tuple[int, int]]())
        for kind, reached in enumerate(found):
            word = self._words and self._is_word[kind]
            yield frozenset({whole} if whole in reached else reached), word

    def _advanced(
        self, needed: frozenset[tuple[int, int]], char: int
    ) -> frozenset[tuple[int, int]] | None:
        """Return what must still match after a character; None: it cannot."""
        found = set()
        for index, state in needed:
            one = self._ahead[index]
            target = one.step(state, char)
            if set(one.steps[target]) == {target}:
                if target not in one.accepting:
                    return None
                continue
            found.add((index, target))
        return frozenset(found)

    def _closed(
        self, configs: Iterable[Config], before: bool | None, after: bool | None
    ) -> set[Config]:
        """Return the states with those that are reached without a character; None: the text begins,
        or ends, here."""
        found = set(configs)
        waiting = list(found)
        while waiting:
            state, needed = waiting.pop()
            for label, target in self._nfa.edges[state]:
                if isinstance(label, tuple):
                    continue
                more = needed
                if isinstance(label, Ahead):
                    look = len(BEFORE) * self._looks.index(label) + BEFORE.index(before)
                    more = needed | {(look, 0)}
                elif (
                    (label == "^" and before is not None)
                    or (label == "$" and after is not None)
                    or (label in ("b", "B") and (bool(before) != bool(after)) != (label == "b"))
                ):
                    continue
                if (target, more) not in found:
                    if len(found) > 10 * MOST_STATES:
                        raise NotRegular("its automaton is too large")
                    found.add((target, more))
                    waiting.append((target, more))
        return found

    def _accepts(self, subset: Subset) -> bool:
        return any(
            state == self._nfa.end
            and all(at in self._ahead[index].accepting for index, at in needed)
            for state, needed in self._closed(*subset, None)
        )


def _has(chars: Ranges, char: int) -> bool:
    return any(low <= char <= high for low, high in chars)


def _determined(nfa: Nfa, before: bool | None = None) -> Automaton:
    return _Subsets(nfa).automaton(before)


def _ahead(look: Ahead, before: bool | None) -> Automaton:
    found = _determined(look.nfa, before)
    return found if look.positive else found.negated()


class _Writer:
    """Writes an automaton as an expression, eliminating one state after the other."""

    def __init__(self, automaton: Automaton) -> None:
        n = len(automaton.steps)
        self._edges: dict[int, dict[int, str]] = {state: {} for state in range(-1, n + 1)}
        alive = _alive(automaton)
        ends = (*automaton.bounds[1:], LAST + 1)
        for state in alive:
            by_target: dict[int, list[tuple[int, int]]] = {}
            for low, end, target in zip(
                automaton.bounds, ends, automaton.steps[state], strict=True
            ):
                if target in alive:
                    by_target.setdefault(target, []).append((low, end - 1))
            for target, intervals in by_target.items():
                if written := _class(union(tuple(intervals))):
                    self._edges[state][target] = written
        if 0 in alive:
            self._edges[-1][0] = ""
        for state in automaton.accepting:
            self._edges[state][n] = ""
        self._inner = set(alive)
        self._end = n

    def written(self) -> str:
        sources: dict[int, set[int]] = {}
        for source, edges in self._edges.items():
            for target in edges:
                sources.setdefault(target, set()).add(source)
        while self._inner:
            state = min(
                self._inner,
                key=lambda one: (
                    len(sources.get(one, set()) - {one}) * len(self._edges[one].keys() - {one}),
                    sum(map(len, self._edges[one].values())),
                ),
            )
            self._inner.discard(state)
            out = self._edges.pop(state)
            loop = out.pop(state, None)
            middle = "" if not loop else f"{_atom(loop)}*"
            for target in out:
                sources[target].discard(state)
            for source in sources.pop(state, set()) - {state}:
                into = self._edges[source].pop(state)
                for target, behind in out.items():
                    more = _part(into) + middle + _part(behind)
                    known = self._edges[source].get(target)
                    both = more if known is None else _either(known, more)
                    if len(both) > LONGEST:
                        raise NotRegular("its expression is too long")
                    self._edges[source][target] = both
                    sources[target].add(source)
        if self._end not in self._edges[-1]:
            raise NotRegular("it matches no text")
        return self._edges[-1][self._end]


def _alive(automaton: Automaton) -> set[int]:
    """Return the states from which a text can be accepted."""
    alive = set(automaton.accepting)
    while True:
        more = {
            state
            for state, targets in enumerate(automaton.steps)
            if state not in alive and not alive.isdisjoint(targets)
        }
        if not more:
            return alive
        alive |= more


def _either(left: str, right: str) -> str:
    if left == right:
        return left
    return f"{left}|{right}"


def _part(text: str) -> str:
    """Return an expression in the form of a part of a sequence."""
    return f"(?:{text})" if has_choice(text) else text


def has_choice(text: str) -> bool:
    """Return whether an expression has alternatives outside of groups."""
    depth, escaped, in_class = 0, False, False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif in_class:
            in_class = letter != "]"
        elif letter == "[":
            in_class = True
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "|" and depth == 0:
            return True
    return False


def _atom(text: str) -> str:
    """Return an expression in the form of a repetition's operand."""
    single = len(text) == 1 or (text[0] == "[" and text.index("]", 2) == len(text) - 1)
    return text if single and "\\]" not in text else f"(?:{text})"


def _class(chars: Ranges) -> str:
    """Return characters as a class; empty for surrogates alone."""
    kept: list[tuple[int, int]] = []
    for low, high in chars:
        for one in ((low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)):
            if one[0] <= one[1]:
                kept.append(one)
    if not kept:
        return ""
    if kept == [(0, SURROGATES[0] - 1), (SURROGATES[1] + 1, LAST)]:
        return "(?s:.)"
    if len(kept) == 1 and kept[0][0] == kept[0][1]:
        return _letter(kept[0][0])
    inverted = kept[-1][1] == LAST
    if inverted:
        whole = union(tuple(kept), (SURROGATES,))
        at, shown = 0, []
        for low, high in whole:
            if low > at:
                shown.append((at, low - 1))
            at = high + 1
    else:
        shown = kept
    parts = [
        _letter(low) if low == high else f"{_letter(low)}-{_letter(high)}" for low, high in shown
    ]
    return f"[{'^' if inverted else ''}{''.join(parts)}]"


def _letter(number: int) -> str:
    letter = chr(number)
    if number < 32 or number == 127:
        return f"\\x{number:02x}"
    return letter if letter.isalnum() or number > 127 or letter in " _<>" else f"\\{letter}"

"""Parse regular expressions of ECMA-262 (and most of Python's) into a nondeterministic automaton.

`automaton` makes them deterministic. Anchors, word boundaries and what looks ahead become
conditions of an edge. What two dialects read differently is read so that either is satisfied:
narrowly, or widely for an expression that must not match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tgi_async.grammar.characters import LAST, Ranges, complement, union

MOST_STATES = 3_000
LONGEST = 2_000
"""Most characters of an expression."""


def is_plain(pattern: str) -> bool:
    """Return whether engines read it as intended: no inner anchors, no lookahead, no unusual
    class."""
    in_class = escaped = choice = anchored = False
    depth = 0
    for at, letter in enumerate(pattern):
        if escaped:
            escaped = False
            if letter in "bB" and not in_class:
                return False
        elif letter == "\\":
            escaped = True
        elif in_class:
            if letter == "[" or (letter in "&|~-" and pattern[at + 1 : at + 2] == letter):
                return False
            in_class = letter != "]"
        elif letter == "[":
            in_class = True
        elif letter in "^$":
            if at != (0 if letter == "^" else len(pattern) - 1):
                return False
            anchored = True
        elif letter == "|":
            choice = choice or depth == 0
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if pattern[at + 1 : at + 3] in ("?=", "?!", "?<") and letter == "(":
                return False
    return not (choice and anchored)


class NotRegular(Exception):
    """The expression is not supported, or its automaton is too large."""


def chars(text: str) -> Ranges:
    """Return the characters of a text."""
    return union(*(((ord(one), ord(one)),) for one in text))


ALL: Ranges = ((0, LAST),)
BEYOND_ASCII: Ranges = ((128, LAST),)
SPACES: Ranges = (
    *((0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
"""White space beyond ASCII, in some dialect."""
WORD = union(((48, 57), (65, 90), (97, 122)), chars("_"))
CLASSES = {"d": ((48, 57),), "w": WORD, "s": chars(" \t\n\r\f\v")}
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
LINE_ENDS = chars("\n\r\u2028\u2029")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|[ux]\{([0-9a-fA-F]{1,6})\}")
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")


@dataclass(frozen=True, slots=True)
class Ahead:
    """A lookahead: what comes next begins like this, or does not."""

    nfa: Nfa
    positive: bool


@dataclass(slots=True, eq=False)
class Nfa:
    """A nondeterministic automaton: edges by state, each with a set of characters or a lookahead.

    Conditions are `^`, `$`, `b`, `B`, `Ahead`, and an empty text for none.
    """

    edges: list[list[tuple[Ranges | str | Ahead, int]]] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def state(self) -> int:
        if len(self.edges) >= MOST_STATES:
            raise NotRegular("it is too large")
        self.edges.append([])
        return len(self.edges) - 1

    def edge(self, source: int, label: Ranges | str | Ahead, target: int) -> None:
        self.edges[source].append((label, target))


def nfa_of(pattern: str, wide: bool) -> Nfa:
    """Return the texts in which the pattern matches somewhere. Raises NotRegular."""
    if len(pattern) > LONGEST:
        raise NotRegular("it is too long")
    return _Reader(pattern, wide).whole()


class _Reader:
    def __init__(self, pattern: str, wide: bool) -> None:
        self._pattern = pattern
        self._at = 0
        self._wide = wide
        self._nfa = Nfa()
        self._depth = 0
        self._any_char = False
        """Whether a dot matches line breaks too."""

    def whole(self) -> Nfa:
        nfa = self._nfa
        start = nfa.state()
        nfa.edge(start, ALL, start)
        begin, end = self._choice()
        if self._at < len(self._pattern):
            raise NotRegular("a parenthesis is not open")
        nfa.edge(start, "", begin)
        nfa.edge(end, ALL, end)
        nfa.start, nfa.end = start, end
        return nfa

    def _peek(self, text: str) -> bool:
        return self._pattern.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise NotRegular("it ends too soon")
        self._at += 1
        return self._pattern[self._at - 1]

    def _choice(self) -> tuple[int, int]:
        self._depth += 1
        if self._depth > 50:
            raise NotRegular("it is nested too deep")
        nfa = self._nfa
        begin, end = nfa.state(), nfa.state()
        while True:
            first, last = self._sequence()
            nfa.edge(begin, "", first)
            nfa.edge(last, "", end)
            if not self._take("|"):
                self._depth -= 1
                return begin, end

    def _sequence(self) -> tuple[int, int]:
        begin = end = self._nfa.state()
        while self._at < len(self._pattern) and not self._peek("|") and not self._peek(")"):
            first, last = self._repeated()
            self._nfa.edge(end, "", first)
            end = last
        return begin, end

    def _repeated(self) -> tuple[int, int]:
        where = self._at
        begin, end = self._atom()
        behind = self._at
        if self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        elif found := _COUNT.match(self._pattern, self._at):
            self._at = found.end()
            least = int(found[1])
            most = least if not found[2] else int(found[3]) if found[3] else None
        else:
            return begin, end
        if self._peek("+"):
            raise NotRegular("a possessive quantifier")
        self._take("?")
        after = self._at
        if max(least, most or 0) > MOST_STATES:
            raise NotRegular("it is too large")

        def again() -> tuple[int, int]:
            self._at = where
            made = self._atom()
            assert self._at == behind
            return made

        nfa = self._nfa
        start = at = nfa.state()
        out = nfa.state()
        copies = max(least, most if most is not None else least + 1)
        for index in range(copies):
            first, last = (begin, end) if index == 0 else again()
            if index >= least:
                nfa.edge(at, "", out)
            nfa.edge(at, "", first)
            if most is None and index == copies - 1:
                nfa.edge(last, "", at)
            else:
                at = last
        nfa.edge(at, "", out)
        self._at = after
        return start, out

    def _atom(self) -> tuple[int, int]:
        letter = self._next()
        if letter == "(":
            return self._group()
        if letter in "*+?":
            raise NotRegular("nothing to repeat")
        if letter == "^":
            return self._single("^")
        if letter == "$":
            begin, end = self._single("$")
            if self._wide:  # Python's also stands before a last line break
                middle = self._nfa.state()
                self._nfa.edge(begin, chars("\n"), middle)
                self._nfa.edge(middle, "$", end)
            return begin, end
        if letter == "\\" and self._pattern[self._at : self._at + 1] in ("b", "B"):
            return self._single(self._next())
        if letter == "." and self._any_char:
            return self._single(ALL)
        if letter == ".":
            return self._single(complement(chars("\n") if self._wide else LINE_ENDS))
        if letter == "[":
            return self._single(self._set())
        if letter == "\\":
            return self._single(self._escape(self._wide))
        return self._single(chars(letter))

    def _single(self, label: Ranges | str | Ahead) -> tuple[int, int]:
        begin, end = self._nfa.state(), self._nfa.state()
        self._nfa.edge(begin, label, end)
        return begin, end

    def _group(self) -> tuple[int, int]:
        positive = self._take("?=")
        if positive or self._take("?!"):
            outer = self._nfa, self._wide
            self._nfa, self._wide = Nfa(), self._wide == positive
            start, end = self._choice()
            self._nfa.edge(end, ALL, end)
            self._nfa.start, self._nfa.end = start, end
            label = Ahead(self._nfa, positive)
            self._nfa, self._wide = outer
            made = self._single(label)
        else:
            any_char, self._any_char = self._any_char, self._any_char or self._take("?s:")
            if self._take("?") and not self._take(":"):
                if not self._take("<") and not self._take("P<"):
                    raise NotRegular("a group of another dialect")
                if self._peek("=") or self._peek("!"):
                    raise NotRegular("it looks behind")
                while self._next() != ">":
                    pass
            made = self._choice()
            self._any_char = any_char
        if not self._take(")"):
            raise NotRegular("a parenthesis is not closed")
        return made

    def _set(self) -> Ranges:
        negated = self._take("^")
        wide = self._wide != negated
        if self._peek("]"):
            raise NotRegular("an empty class")
        parts: list[Ranges] = []
        while not self._take("]"):
            low = self._member(wide)
            if self._peek("-") and not self._peek("-]"):
                self._at += 1
                high = self._member(wide)
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1]:
                    raise NotRegular("a range between classes")
                if high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise NotRegular("a range out of order")
                low = ((low[0][0], high[0][0]),)
            parts.append(low)
        found = union(*parts)
        return complement(found) if negated else found

    def _member(self, wide: bool) -> Ranges:
        letter = self._next()
        if letter != "\\":
            return chars(letter)
        if self._take("b"):
            return chars("\b")
        return self._escape(wide)

    def _escape(self, wide: bool) -> Ranges:
        if found := _HEX.match(self._pattern, self._at):
            self._at = found.end()
            number = int(found[1] or found[2] or found[3], 16)
            if number > LAST or 0xD800 <= number <= 0xDFFF:
                raise NotRegular("half of a surrogate pair")
            return ((number, number),)
        letter = self._next()
        if letter.lower() in CLASSES:
            narrow = CLASSES[letter.lower()]
            widest = union(narrow, SPACES if letter in "sS" else BEYOND_ASCII)
            if letter in CLASSES:
                return widest if wide else narrow
            return complement(narrow if wide else widest)
        if letter in ESCAPES:
            return chars(ESCAPES[letter])
        if letter.isalnum():
            raise NotRegular(f"\\{letter}")
        return chars(letter)

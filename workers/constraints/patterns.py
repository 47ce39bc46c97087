"""Regular expressions, in the dialect of Rust's `regex`, as expressions over bytes."""

from __future__ import annotations

from typing import NamedTuple

from tgi_async.grammar.characters import Ranges, complement, union
from workers.constraints import characters as sets
from workers.constraints.characters import characters
from workers.constraints.expressions import Expressions
from workers.constraints.nodes import Expression, TooComplex

ESCAPED = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7, "0": 0}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
POSIX = {
    "alpha": ((65, 90), (97, 122)),
    "digit": sets.DIGITS,
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "lower": ((97, 122),),
    "upper": ((65, 90),),
    "space": sets.SPACES,
    "word": sets.WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
}


class Chars(NamedTuple):
    """One character of a set."""

    ranges: Ranges


class Anchor(NamedTuple):
    """`^` or `$`."""

    at_end: bool


class Cat(NamedTuple):
    """One after the other."""

    parts: tuple[Tree, ...]


class Alt(NamedTuple):
    """One of these."""

    options: tuple[Tree, ...]


class Rep(NamedTuple):
    """So many times."""

    part: Tree
    least: int
    most: int | None


Tree = Chars | Anchor | Cat | Alt | Rep


class _Reader:
    """Parses one pattern. Raises TooComplex for unsupported syntax."""

    def __init__(self, pattern: str, unicode_spaces: bool) -> None:
        self._pattern = pattern
        self._at = 0
        self._spaces = sets.unicode_spaces() if unicode_spaces else sets.SPACES
        self._folds = False
        self._dot = sets.NO_LINE_BREAK

    def all(self) -> Tree:
        tree = self._alternatives()
        if self._at < len(self._pattern):
            raise TooComplex
        return tree

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise TooComplex
        self._at += 1
        return self._pattern[self._at - 1]

    def _until(self, end: str) -> str:
        found = self._pattern.find(end, self._at)
        if found < 0:
            raise TooComplex
        text = self._pattern[self._at : found]
        self._at = found + len(end)
        return text

    def _alternatives(self) -> Tree:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self) -> Tree:
        parts: list[Tree] = []
        while self._peek() not in ("", "|", ")"):
            part = self._atom()
            while part is not None and (bounds := self._bounds()) is not None:
                part = Rep(part, *bounds)
            if part is not None:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def _bounds(self) -> tuple[int, int | None] | None:
        known: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        bounds = known.get(self._peek())
        if bounds is not None:
            self._at += 1
        elif self._take("{"):
            least, comma, most = self._until("}").replace(" ", "").partition(",")
            if not least.isdigit() or (most and not most.isdigit()):
                raise TooComplex
            bounds = (int(least), int(most) if most else None if comma else int(least))
        else:
            return None
        self._take("?")  # lazy or not: the texts are the same
        return bounds

    def _atom(self) -> Tree | None:
        letter = self._next()
        if letter == "(":
            return self._group()
        if letter == "[":
            return self._chars(self._class())
        if letter == ".":
            return Chars(self._dot)
        if letter in "^$":
            return Anchor(letter == "$")
        if letter == "\\":
            if self._peek() in ("A", "z"):
                return Anchor(self._next() == "z")
            return self._chars(self._escape())
        if letter in "*+?{":
            raise TooComplex
        return self._chars(((ord(letter), ord(letter)),))

    def _chars(self, ranges: Ranges) -> Tree:
        return Chars(sets.folded(ranges) if self._folds else ranges)

    def _group(self) -> Tree | None:
        before = self._folds, self._dot
        if self._take("?"):
            if self._take("P<") or (self._peek() == "<" and self._take("<")):
                self._until(">")
            else:
                self._flags()
                if self._take(")"):
                    return None  # they hold up to the end of the group around
                if not self._take(":"):
                    raise TooComplex
        tree = self._alternatives()
        if not self._take(")"):
            raise TooComplex
        self._folds, self._dot = before
        return tree

    def _flags(self) -> None:
        on = True
        while self._peek() not in (")", ":"):
            flag = self._next()
            if flag == "-":
                on = False
            elif flag == "i":
                self._folds = on
            elif flag == "s":
                self._dot = sets.ANY if on else sets.NO_LINE_BREAK
            else:
                raise TooComplex

    def _escape(self) -> Ranges:
        letter = self._next()
        classes = {"d": sets.DIGITS, "w": sets.WORD, "s": self._spaces}
        if letter.lower() in classes:
            found = classes[letter.lower()]
            return complement(found) if letter.isupper() else found
        if letter in "pP":
            name = self._until("}") if self._take("{") else self._next()
            found = sets.category(name)
            return complement(found) if letter == "P" else found
        if letter in HEX_DIGITS:
            if self._take("{"):
                digits = self._until("}")
            else:
                digits = "".join(self._next() for _ in range(HEX_DIGITS[letter]))
            try:
                code = int(digits, 16)
            except ValueError as error:
                raise TooComplex from error
            return ((code, code),)
        if letter in ESCAPED:
            return ((ESCAPED[letter], ESCAPED[letter]),)
        if letter.isalnum():
            raise TooComplex
        return ((ord(letter), ord(letter)),)

    def _class(self) -> Ranges:
        inverted = self._take("^")
        found: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            if self._pattern[self._at : self._at + 2] in ("&&", "--", "~~"):
                raise TooComplex
            low = self._member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1:
                    raise TooComplex
                low = ((low[0][0], high[0][1]),)
            found += low
            first = False
        self._at += 1
        ranges = union(found)
        if self._folds:
            ranges = sets.folded(ranges)
        return complement(ranges) if inverted else ranges

    def _member(self) -> Ranges:
        if self._take("[:"):
            name = self._until(":]")
            found = POSIX.get(name.removeprefix("^"))
            if found is None:
                raise TooComplex
            return complement(found) if name.startswith("^") else found
        letter = self._next()
        if letter == "[":
            return self._class()
        if letter == "\\":
            return self._escape()
        return ((ord(letter), ord(letter)),)


def matching(expressions: Expressions, pattern: str) -> Expression:
    """Return the texts that match as a whole. Raises TooComplex."""
    return _anchored(expressions, _Reader(pattern, False).all(), expressions.empty)


def searching(expressions: Expressions, pattern: str) -> Expression:
    """Return the texts that match somewhere, as for `pattern` of a schema. Raises TooComplex."""
    anything = expressions.repeated(characters(expressions, sets.ANY))
    return _anchored(expressions, _Reader(pattern, True).all(), anything)


def _anchored(expressions: Expressions, tree: Tree, around: Expression) -> Expression:
    """Add `around` on each side that has no anchor."""
    options = []
    for begins, rest in _stripped(tree, False):
        for ends, inner in _stripped(rest, True):
            before = expressions.empty if begins else around
            after = expressions.empty if ends else around
            options.append(expressions.sequence([before, _node(expressions, inner), after]))
    return expressions.choice(options)


def _stripped(tree: Tree, at_end: bool) -> list[tuple[bool, Tree]]:
    """Return the options of a tree without their anchors at one side, and whether they had them."""
    if isinstance(tree, Anchor) and tree.at_end == at_end:
        return [(True, Cat(()))]
    if isinstance(tree, Alt) and _has_anchor(tree):
        return [one for option in tree.options for one in _stripped(option, at_end)]
    if isinstance(tree, Cat) and tree.parts and _has_anchor(tree):
        if at_end:
            rest, last = tree.parts[:-1], tree.parts[-1]
            return [(found, Cat((*rest, one))) for found, one in _stripped(last, at_end)]
        first, rest = tree.parts[0], tree.parts[1:]
        return [(found, Cat((one, *rest))) for found, one in _stripped(first, at_end)]
    return [(False, tree)]


def _has_anchor(tree: Tree) -> bool:
    match tree:
        case Anchor():
            return True
        case Cat(parts) | Alt(parts):
            return any(map(_has_anchor, parts))
        case Rep(part):
            return _has_anchor(part)
    return False


def _node(expressions: Expressions, tree: Tree) -> Expression:
    match tree:
        case Chars(ranges):
            return characters(expressions, ranges)
        case Cat(parts):
            return expressions.sequence([_node(expressions, part) for part in parts])
        case Alt(options):
            return expressions.choice(_node(expressions, option) for option in options)
        case Rep(part, least, most):
            return expressions.repeated(_node(expressions, part), least, most)
    raise TooComplex

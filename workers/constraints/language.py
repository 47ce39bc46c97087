"""The texts of a grammar as an expression: terms to nodes."""

from __future__ import annotations

from collections.abc import Callable

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.constraints.characters import ANY, characters
from workers.constraints.expressions import Expressions
from workers.constraints.literals import LiteralMachine
from workers.constraints.nodes import SPECIAL, Expression, Steps, TooComplex
from workers.constraints.patterns import matching
from workers.constraints.values import MANY, value

SpecialId = Callable[[str], int | None]
"""Returns the id of the special token with this name."""


def language(expressions: Expressions, grammar: Grammar, special_id: SpecialId) -> Expression:
    """Return the expression, with its costs. Raises TooComplex for unsupported terms."""
    node = _Terms(expressions, special_id).of(grammar)
    expressions.settle()
    return node


class _Terms:
    def __init__(self, expressions: Expressions, special_id: SpecialId) -> None:
        self._x = expressions
        self._special_id = special_id

    def of(self, term: Grammar) -> Expression:
        x = self._x
        match term:
            case terms.Json(schema):
                return value(x, schema)
            case terms.Regex(pattern):
                return matching(x, pattern)
            case terms.Text(text):
                return x.text(text.encode())
            case terms.Special(token):
                return self._literal(token)
            case terms.Prose(until, begin, _):
                spaces = x.repeated(x.symbols(1 << 32 | 31 << 9)) if begin else x.empty
                prose = _Until(x, [(until.encode(), x.empty)], False).start
                return x.sequence([spaces, x.text(begin.encode()), prose])
            case terms.Sequence(parts):
                return x.sequence([self.of(part) for part in parts])
            case terms.Choice(options):
                texts = [one.text.encode() for one in options if isinstance(one, terms.Text)]
                if len(texts) == len(options) > MANY and all(texts):
                    return LiteralMachine(x, texts).start
                return x.choice([self.of(option) for option in options])
            case terms.Repeat(part, least, most, separator):
                return self._repeat(self.of(part), least, most, x.text(separator.encode()))
            case terms.Tagged():
                return self._tagged(term)
        raise TooComplex

    def _repeat(
        self, part: Expression, least: int, most: int | None, separator: Expression
    ) -> Expression:
        x = self._x
        if separator is x.empty or most == 0:
            return x.repeated(part, least, most)
        n_more = None if most is None else most - 1
        further = x.repeated(x.then(separator, part), max(0, least - 1), n_more)
        some = x.then(part, further)
        return some if least else x.optional(some)

    def _tagged(self, term: terms.Tagged) -> Expression:
        x = self._x
        rests = [
            x.sequence(
                [
                    self._literal(tag.begin.removeprefix(tag.trigger)),
                    self.of(tag.content),
                    self._literal(tag.end),
                ]
            )
            for tag in term.tags
        ]
        behind = [(tag.trigger, rest) for tag, rest in zip(term.tags, rests, strict=True)]
        free = _Until(x, [], True)
        free.after_end = not term.ends
        for trigger, rest in behind:
            found = self._special_id(trigger)
            if found is None:
                free.ends.append((trigger.encode(), rest))
            else:
                free.symbols.append((SPECIAL + found, rest))
        if not term.begins:
            return free.start
        begun = x.choice([x.then(self._literal(trigger), rest) for trigger, rest in behind])
        return begun if term.ends else x.then(begun, free.start)

    def _literal(self, text: str) -> Expression:
        found = self._special_id(text) if text else None
        return (
            self._x.text(text.encode()) if found is None else self._x.symbols(1 << SPECIAL + found)
        )


class _Until:
    """Any characters, up to and with the first of some texts.

    A state is what is begun of these texts, and the rest of a character that is begun.
    """

    def __init__(self, expressions: Expressions, ends: list[tuple[bytes, Expression]], free: bool):
        self._x = expressions
        self._character = characters(expressions, ANY)
        self.ends = ends
        """Texts, and what follows each."""
        self.symbols: list[tuple[int, Expression]] = []
        """Special tokens that are ends too."""
        self.after_end = False
        """Whether all of it may come again after that."""
        self._free = free

    @property
    def start(self) -> Expression:
        """Return the start state."""
        return self._x.machine(self, (b"", self._x.empty))

    @property
    def most(self) -> int:
        """See `Machine`."""
        return 3 if self._free else 3 + len(self.ends[0][0])

    @property
    def inner(self) -> list[Expression]:
        """See `Machine`."""
        return [rest for _, rest in (*self.ends, *self.symbols)]

    def accepts(self, state: tuple[bytes, Expression]) -> bool:
        """See `Machine`."""
        return self._free and state[1] is self._x.empty

    def least(self, state: tuple[bytes, Expression]) -> bytes | None:
        """See `Machine`."""
        begun, rest = state
        if begun and not self._free:
            return self.ends[0][0][len(begun) :]
        return bytes(self._x.least(rest)) + (b"" if self._free else self.ends[0][0])

    def steps(self, state: tuple[bytes, Expression]) -> Steps:
        """See `Machine`."""
        begun, rest = state
        found: dict[Expression, int] = {}
        known = 0
        for text, _ in self.ends:
            for byte in text:
                known |= 1 << byte
        for mask, left in self._x.steps(self._character if rest is self._x.empty else rest):
            for byte in range(SPECIAL):
                if (mask & known) >> byte & 1:
                    node = self._behind(begun + bytes((byte,)), left)
                    found[node] = found.get(node, 0) | 1 << byte
            if other := mask & ~known:
                node = self._x.machine(self, (b"", left))
                found[node] = found.get(node, 0) | other
        for symbol, behind in self.symbols if rest is self._x.empty else ():
            node = self._closed([behind])
            found[node] = found.get(node, 0) | 1 << symbol
        return [(mask, node) for node, mask in found.items()]

    def _behind(self, text: bytes, left: Expression) -> Expression:
        for start in range(len(text) + 1):
            begun = text[start:]
            rests = [rest for end, rest in self.ends if end == begun]
            if rests:
                return self._closed(rests)
            if any(end.startswith(begun) for end, _ in self.ends):
                return self._x.machine(self, (begun, left))
        return self._x.machine(self, (b"", left))

    def _closed(self, rests: list[Expression]) -> Expression:
        rest = self._x.choice(rests)
        return self._x.then(rest, self.start) if self.after_end else rest

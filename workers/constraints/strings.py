"""JSON strings: a schema's constraints on them, and how they are written."""

from __future__ import annotations

from typing import Any

from workers.constraints import characters as sets
from workers.constraints.characters import characters
from workers.constraints.expressions import Expressions
from workers.constraints.formats import FORMATS
from workers.constraints.nodes import ALL_BYTES, Expression, TooComplex
from workers.constraints.patterns import matching, searching

SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
ESCAPED = (1 << 32) - 1 | 1 << 34 | 1 << 92 | 1 << 127
"""Characters that are written as escapes."""


class JsonStrings:
    """The JSON strings of one grammar."""

    def __init__(self, expressions: Expressions) -> None:
        self._x = expressions
        self._quoted: dict[Expression, Expression] = {}

    def of(self, schema: dict[str, Any]) -> Expression:
        """Return the strings that a schema takes, as JSON."""
        demands = self.demands(schema)
        return self.quote(self._x.both(demands) if demands else self._text(0, None))

    def demands(self, schema: dict[str, Any]) -> list[Expression]:
        """Return what a string must match, before it is written as JSON."""
        found = []
        for one in (schema, *schema.get("allOf", ())):
            if "pattern" in one:
                found.append(searching(self._x, one["pattern"]))
            if "format" in one:
                if one["format"] not in FORMATS:
                    raise TooComplex
                found.append(matching(self._x, FORMATS[one["format"]]))
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if least or most is not None:
            found.append(self._text(least, most))
        return found

    def _text(self, least: int, most: int | None) -> Expression:
        return self._x.repeated(characters(self._x, sets.ANY), least, most)

    def quote(self, node: Expression) -> Expression:
        """Return texts written as JSON strings. Raises TooComplex."""
        quote = self._x.symbols(1 << 34)
        return self._x.sequence([quote, self._escaped(node), quote])

    def _escaped(self, node: Expression) -> Expression:
        """Return the same texts within a JSON string."""
        known = self._quoted.get(node)
        if known is None:
            known = self._quoted[node] = self._with_escapes(node)
        return known

    def _with_escapes(self, node: Expression) -> Expression:
        x, parts = self._x, node.parts
        match node.kind:
            case "symbols":
                return self._character(parts[0])
            case "then":
                heads = []
                while node.kind == "then":
                    heads.append(self._escaped(node.parts[0]))
                    node = node.parts[1]
                return x.sequence([*heads, self._escaped(node)])
            case "choice":
                return x.choice([self._escaped(one) for one in parts])
            case "both":
                return x.both([self._escaped(one) for one in parts])
            case "repeated":
                return x.repeated(self._escaped(parts[0]), parts[1], parts[2])
            case "empty":
                return node
        raise TooComplex

    def _character(self, mask: int) -> Expression:
        x = self._x
        options = [x.symbols(mask & ~ESCAPED)]
        if special := mask & ESCAPED:
            backslash = x.symbols(1 << 92)
            short = 0
            for code, letter in SHORT_ESCAPES.items():
                short |= (special >> code & 1) << ord(letter)
            options.append(x.then(backslash, x.symbols(short)))
            prefix = x.text(b"\\u00")
            for high in range(8):
                low = special >> 16 * high & 0xFFFF
                low &= 0xFFFF if high in (0, 1) else 1 << 15 if high == 7 else 0
                if low:
                    digits = [x.symbols(_hex_digits(1 << high)), x.symbols(_hex_digits(low))]
                    options.append(x.sequence([prefix, *digits]))
        return x.choice(options)


def _hex_digits(values: int) -> int:
    """Return the digits, in either case, of a set of values."""
    mask = 0
    for one in range(16):
        if values >> one & 1:
            mask |= 1 << ord(f"{one:x}") | 1 << ord(f"{one:X}")
    return mask & ALL_BYTES

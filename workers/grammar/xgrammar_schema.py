"""Schemas as xgrammar can follow them: what it would leave out of account is refused by name.

It takes what `schema.emit` writes. Stricter than the schema is only this: an object that names
properties has no others, for xgrammar lets a name come a second time in another spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tgi_async.grammar.schema.document import join
from workers.grammar.engine import GrammarError
from workers.grammar.unique import without_unique

UNKNOWN = frozenset({"allOf", "patternProperties"})
"""Of the keywords that `schema.emit` writes."""
ON_STRINGS = ("pattern", "format", "enum", "minLength")
"""Of these it follows the first that it finds; a length counts as one."""
ASCII_SPACES = {r"\s": r" \t\n\r\f\v", r"\S": r"\x00-\x08\x0e-\x1f!-\u{10ffff}"}
"""What stands in a class for them."""


def adapted(schema: Any, pointer: str = "#") -> Any:
    """`schema` is one that `schema.normalize` made. Raises GrammarError."""
    if schema is True:
        return {}
    if pointer == "#":
        schema = without_unique(schema)
    if schema is False:
        raise GrammarError(f"nothing can be at {pointer}")
    for keyword in sorted(UNKNOWN & schema.keys()):
        raise _unsupported(keyword, pointer, "it does not know it")
    _check_strings(schema, pointer)
    _check_multiples(schema, pointer)
    written = dict(schema)
    for keyword in ("$defs",):
        if keyword in schema:
            written[keyword] = {
                name: adapted(one, join(join(pointer, keyword), name))
                for name, one in schema[keyword].items()
            }
    if "anyOf" in schema:
        written["anyOf"] = [adapted(one, join(pointer, "anyOf")) for one in schema["anyOf"]]
    if "pattern" in schema:
        written["pattern"] = _whole(schema["pattern"], pointer)
    _adapt_arrays(schema, written, pointer)
    _adapt_objects(schema, written, pointer)
    return written


def _check_strings(schema: dict[str, Any], pointer: str) -> None:
    given = [name for name in ON_STRINGS if name in schema]
    if "maxLength" in schema and "minLength" not in schema:
        given.append("maxLength")
    if len(given) > 1:
        raise _unsupported(given[1], pointer, f"beside `{given[0]}`")


def _check_multiples(schema: dict[str, Any], pointer: str) -> None:
    if "multipleOf" in schema and (
        schema.get("type") != "integer" or not isinstance(schema["multipleOf"], int)
    ):
        raise _unsupported("multipleOf", pointer, "for other than integers")


def _adapt_arrays(schema: dict[str, Any], written: dict[str, Any], pointer: str) -> None:
    prefix = schema.get("prefixItems")
    if prefix is not None:
        if False in prefix:  # nothing comes there, and so nothing after it
            length = prefix.index(False)
            written["maxItems"] = min(length, schema.get("maxItems", length))
            prefix = prefix[:length]
            written["items"] = False
        at = join(pointer, "prefixItems")
        written["prefixItems"] = [adapted(one, join(at, i)) for i, one in enumerate(prefix)]
        if not prefix:
            del written["prefixItems"]
    items = written.get("items", True)
    if isinstance(items, dict):
        written["items"] = adapted(items, join(pointer, "items"))


def _adapt_objects(schema: dict[str, Any], written: dict[str, Any], pointer: str) -> None:
    additional = schema.get("additionalProperties", True)
    if isinstance(additional, dict):
        written["additionalProperties"] = adapted(additional, join(pointer, "additionalProperties"))
    if "properties" not in schema:
        return
    if isinstance(additional, dict):
        raise _unsupported("additionalProperties", pointer, "beside `properties`")
    at = join(pointer, "properties")
    written["properties"] = {
        name: adapted(one, join(at, name))
        for name, one in schema["properties"].items()
        if one is not False
    }
    written["additionalProperties"] = False


def _whole(pattern: str, pointer: str) -> str:
    """xgrammar wants a pattern of the whole string; JSON Schema's may match in the middle."""
    checked(pattern)
    pattern = _ascii_spaces(pattern)
    begins, ends = pattern.startswith("^"), _ends(pattern)
    inner = pattern[begins : len(pattern) - ends]
    if begins + ends and _has_choice(inner):
        raise _unsupported("pattern", pointer, "an anchor beside `|`; put the rest in parentheses")
    before, after = "" if begins else ".*", "" if ends else ".*"
    return f"^{before}({inner}){after}$"


def _ends(pattern: str) -> bool:
    if not pattern.endswith("$"):
        return False
    before = pattern[:-1]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 0


def _outside(pattern: str) -> Iterator[tuple[int, str]]:
    """Letters of a regular expression that mean something, with their places: not those that are
    escaped or in a class.
    """
    in_class, escaped = False, False
    for place, letter in enumerate(pattern):
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif in_class:
            in_class = letter != "]"
        else:
            in_class = letter == "["
            yield place, letter


def _has_choice(pattern: str) -> bool:
    """Whether a `|` is outside all parentheses."""
    depth = 0
    for _, letter in _outside(pattern):
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and depth == 0:
            return True
    return False


def checked(pattern: str) -> str:
    """A whole regular expression, for xgrammar to read. Raises GrammarError for what it ignores.

    Its `.` is no line break, as elsewhere.
    """
    written = list(pattern)
    for place, letter in _outside(pattern):
        if letter == ".":
            written[place] = "[^\\n]"
        elif (letter == "^" and place) or (letter == "$" and place < len(pattern) - 1):
            raise GrammarError(f"`{letter}` inside a regular expression is not supported")
        elif letter == "(" and pattern[place + 1 : place + 3] in ("?=", "?!", "?<"):
            raise GrammarError("looking around is not supported in a regular expression")
    return _ascii_spaces("".join(written))


def _ascii_spaces(pattern: str) -> str:
    """Write the classes `\\s` and `\\S` out, as those of ASCII.

    Which spaces beyond ASCII they hold depends on the version: one in 0.2.8, nineteen in 0.2.9.
    """
    classes = {place for place, letter in _outside(pattern) if letter == "["}
    written: list[str] = []
    place, in_class = 0, False
    while place < len(pattern):
        letter, pair = pattern[place], pattern[place : place + 2]
        if pair in ASCII_SPACES:
            inside = ASCII_SPACES[pair]
            written.append(inside if in_class else f"[{inside}]")
        elif letter == "\\":
            written.append(pair)
        else:
            in_class = place in classes or (in_class and letter != "]")
            written.append(letter)
        place += 2 if letter == "\\" else 1
    return "".join(written)


def _unsupported(keyword: str, pointer: str, why: str) -> GrammarError:
    return GrammarError(f"keyword `{keyword}` at {pointer} is not supported by xgrammar: {why}")

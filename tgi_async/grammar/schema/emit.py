"""From clauses back to a schema, in the few keywords that engines have.

Those are: `type`, `enum`, the bounds of numbers, strings, arrays and objects, `pattern`, `format`,
`multipleOf`, `prefixItems`, `items`, `properties`, `patternProperties`, `additionalProperties`,
`required`, `anyOf`, `$ref` to `$defs`, and `allOf` for a second pattern, format or multiple.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tgi_async.grammar.schema.clause import (
    ANY,
    ANYTHING,
    Arrays,
    Clause,
    Numbers,
    Objects,
    Requirement,
    Strings,
)
from tgi_async.grammar.schema.errors import UnsupportedSchema, unsupported
from tgi_async.grammar.schema.expand import Expander
from tgi_async.grammar.schema.keywords import MAX_COUNT, MAX_NUMBER, TYPES

MAX_REQUIREMENTS = 5_000
"""Different schemas of values, inside one."""
MAX_ITEMS = 1_000
"""`minItems`, `maxItems`, `minProperties`, `maxProperties`: engines unroll them."""


class Emitter:
    """Raises UnsupportedSchema for what is beyond engines, and for what no value satisfies."""

    def __init__(self, expander: Expander, root: Requirement) -> None:
        self._root = root
        self._table: dict[Requirement, list[Clause]] = {}
        self._fill(expander)
        self._finite = self._satisfiable()
        self._shared: dict[Requirement, str] = {}
        self._find_shared()
        self._definitions: dict[str, Any] = {}

    def schema(self) -> dict[str, Any] | bool:
        """The schema of the root."""
        if self._root not in self._finite:
            raise UnsupportedSchema("no value satisfies the schema")
        schema: dict[str, Any] | bool = self._place(self._root)
        if not self._definitions or isinstance(schema, bool):
            return schema
        return {**schema, "$defs": self._definitions}

    def _fill(self, expander: Expander) -> None:
        waiting = [self._root]
        while waiting:
            wanted = waiting.pop()
            if wanted in self._table:
                continue
            if len(self._table) >= MAX_REQUIREMENTS:
                raise UnsupportedSchema(
                    f"the schema has more than {MAX_REQUIREMENTS} different parts"
                )
            clauses = self._table[wanted] = expander.clauses(wanted)
            waiting.extend(_inside(clauses))

    def _satisfiable(self) -> set[Requirement]:
        """What some value of finite size is as wanted by."""
        finite: set[Requirement] = set()
        while True:
            more = {
                wanted
                for wanted, clauses in self._table.items()
                if wanted not in finite and any(_ends(clause, finite) for clause in clauses)
            }
            if not more:
                return finite
            finite |= more

    def _find_shared(self) -> None:
        """Name what is wanted in more than one place or inside itself; the rest is put in place."""
        seen: set[Requirement] = set()
        waiting = [self._root]
        while waiting:
            wanted = waiting.pop()
            clauses = self._table[wanted]
            if clauses == [ANY] or not any(True for _ in _inside(clauses)):
                continue
            if wanted in seen:
                self._shared.setdefault(wanted, str(len(self._shared)))
                continue
            seen.add(wanted)
            waiting.extend(_inside(self._table[wanted]))

    def _place(self, wanted: Requirement) -> Any:
        if wanted not in self._finite:
            return False
        name = self._shared.get(wanted)
        if name is None:
            return self._written(wanted)
        if name not in self._definitions:
            self._definitions[name] = None  # for what is inside itself
            self._definitions[name] = self._written(wanted)
        return {"$ref": f"#/$defs/{name}"}

    def _written(self, wanted: Requirement) -> Any:
        options: list[Any] = []
        for clause in self._table[wanted]:
            if not _ends(clause, self._finite):
                continue
            for option in self._options(clause):
                if option not in options:
                    options.append(option)
        if True in options:
            return True
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _options(self, clause: Clause) -> Iterator[Any]:
        if clause == ANY:
            yield True
            return
        values: list[Any] = []
        types = [kind for kind in TYPES if kind in clause.types]
        if "boolean" in types and len(clause.booleans) == 1:
            types.remove("boolean")
            values += clause.booleans
        among = clause.strings.among
        rest: dict[str, Any] = {}
        if "string" in types and among is not None:
            types.remove("string")
            values += among
            rest = _string_keywords(
                Strings(formats=clause.strings.formats, beyond=clause.strings.beyond)
            )
        if values:
            if "null" in types:
                types.remove("null")
                values.append(None)
            if rest:
                rest["type"] = "string"
            yield {"enum": values, **rest}
        if not types:
            return
        names = [
            "integer" if kind == "number" and clause.numbers.integer else kind for kind in types
        ]
        option: dict[str, Any] = {"type": names[0] if len(names) == 1 else names}
        for kind in types:
            match kind:
                case "number":
                    keywords = _number_keywords(clause.numbers)
                case "string":
                    keywords = _string_keywords(clause.strings)
                case "array":
                    keywords = self._array_keywords(clause.arrays)
                case "object":
                    keywords = self._object_keywords(clause.objects)
                case _:
                    continue
            further = keywords.pop("allOf", [])
            option |= keywords
            if further:
                option.setdefault("allOf", []).extend(further)
        yield option

    def _array_keywords(self, arrays: Arrays) -> dict[str, Any]:
        single = arrays.most is not None and arrays.most <= 1
        for beyond in arrays.beyond:
            if not (beyond.keyword == "uniqueItems" and single):
                raise beyond.refusal()
        for keyword, bound in (("minItems", arrays.least), ("maxItems", arrays.most)):
            if bound is not None and bound > MAX_ITEMS and keyword == "minItems":
                raise UnsupportedSchema(f"`{keyword}` must be at most {MAX_ITEMS}. Given: {bound}")
        keywords: dict[str, Any] = {}
        if arrays.prefix:
            keywords["prefixItems"] = [self._place(wanted) for wanted in arrays.prefix]
        if arrays.items != ANYTHING:
            keywords["items"] = self._place(arrays.items)
        if arrays.least:
            keywords["minItems"] = arrays.least
        if arrays.most is not None:
            keywords["maxItems"] = min(arrays.most, MAX_ITEMS)
        return keywords

    def _object_keywords(self, objects: Objects) -> dict[str, Any]:
        for beyond in objects.beyond:
            raise beyond.refusal()
        names = dict.fromkeys((*objects.properties, *objects.required))
        properties = {name: self._place(objects.wanted(name)) for name in names}
        patterns = {pattern: self._place(wanted) for pattern, wanted in objects.patterns.items()}
        additional = self._place(objects.additional)
        keywords: dict[str, Any] = {}
        if properties:
            keywords["properties"] = properties
        if patterns:
            keywords["patternProperties"] = patterns
        if additional is not True:
            keywords["additionalProperties"] = additional
        if objects.required:
            keywords["required"] = list(objects.required)
        least = max(0, objects.least - len(objects.required)) and objects.least
        if least or objects.most is not None:
            self._check_counts(objects, properties, bool(patterns) or additional is not False)
        if least:
            keywords["minProperties"] = least
        if objects.most is not None:
            keywords["maxProperties"] = objects.most
        return keywords

    def _check_counts(self, objects: Objects, properties: dict[str, Any], is_open: bool) -> None:
        """Raises UnsupportedSchema for what engines can not count."""
        least, most = objects.least - len(objects.required), objects.most
        keyword = "maxProperties" if least <= 0 else "minProperties"
        at = objects.bounded_at
        optional = [
            name
            for name, schema in properties.items()
            if name not in objects.required and schema is not False
        ]
        if max(objects.least, most or 0) > MAX_ITEMS:
            raise UnsupportedSchema(f"`{keyword}` at {at} must be at most {MAX_ITEMS}")
        if least > 1 and is_open:
            # The engine would let one name come twice, and count it twice.
            raise unsupported(keyword, at, "more than one further property can not be demanded")
        simple = least <= 1 and (most is None or most - len(objects.required) == 1)
        if optional and (is_open or not simple):
            raise unsupported(keyword, at, "beside properties that are not required")


def _inside(clauses: list[Clause]) -> Iterator[Requirement]:
    """What is wanted of the values directly inside."""
    for clause in clauses:
        if "array" in clause.types:
            yield from clause.arrays.prefix
            yield clause.arrays.items
        if "object" in clause.types:
            objects = clause.objects
            for name in dict.fromkeys((*objects.properties, *objects.required)):
                yield objects.wanted(name)
            yield from objects.patterns.values()
            yield objects.additional


def _ends(clause: Clause, finite: set[Requirement]) -> bool:
    """Whether a value can be in this clause, if values can be as wanted by `finite`."""
    if clause.types - {"array", "object"}:
        return True
    if "array" in clause.types:
        needed = [clause.arrays.item(index) for index in range(min(clause.arrays.least, MAX_ITEMS))]
        if all(wanted in finite for wanted in needed):
            return True
    if "object" not in clause.types:
        return False
    return all(clause.objects.wanted(name) in finite for name in clause.objects.required)


def _number_keywords(numbers: Numbers) -> dict[str, Any]:
    if numbers.fraction is not None:
        raise numbers.fraction.refusal()
    for beyond in numbers.beyond:
        raise beyond.refusal()
    keywords: dict[str, Any] = {}
    low, high = numbers.range
    if (low is not None and low > MAX_NUMBER) or (high is not None and high < -MAX_NUMBER):
        raise UnsupportedSchema("a number must be between -2**53 and 2**53")
    low = None if low is None else max(low, -MAX_NUMBER)
    high = None if high is None else min(high, MAX_NUMBER)
    if low is not None:
        inclusive = numbers.integer or low != numbers.above
        keywords["minimum" if inclusive else "exclusiveMinimum"] = low
    if high is not None:
        inclusive = numbers.integer or high != numbers.below
        keywords["maximum" if inclusive else "exclusiveMaximum"] = high
    for index, multiple in enumerate(numbers.multiples):
        if index:
            keywords.setdefault("allOf", []).append({"multipleOf": multiple})
        else:
            keywords["multipleOf"] = multiple
    return keywords


def _string_keywords(strings: Strings) -> dict[str, Any]:
    for _, beyond in strings.beyond:
        raise beyond.refusal()
    keywords: dict[str, Any] = {}
    if strings.least:
        keywords["minLength"] = strings.least
    if strings.most is not None:
        keywords["maxLength"] = min(strings.most, MAX_COUNT)
    patterns = [pattern for pattern, _ in strings.patterns]
    if strings.none_of:
        patterns.append(none_of_pattern(strings.none_of))
    demands = [("pattern", pattern) for pattern in patterns]
    demands += [("format", name) for name in strings.formats]
    for keyword, value in demands:
        if keyword in keywords:
            keywords.setdefault("allOf", []).append({keyword: value})
        else:
            keywords[keyword] = value
    return keywords


def none_of_pattern(texts: tuple[str, ...]) -> str:
    """A regular expression, without looking ahead, of all texts but these."""
    tree: dict[str, Any] = {}
    for text in texts:
        at = tree
        for letter in text:
            at = at.setdefault(letter, {})
        at[""] = {}
    return f"^(?s:{_other(tree)})$"


def _other(tree: dict[str, Any]) -> str:
    """All texts that are not in a tree of letters; the end of a text is an empty letter."""
    letters = [letter for letter in tree if letter]
    options = [] if "" in tree else [""]
    for letter in letters:
        options.append(re.escape(letter) + _other(tree[letter]))
    others = f"[^{''.join(_in_class(letter) for letter in letters)}]" if letters else "."
    options.append(f"{others}.*")
    return f"(?:{'|'.join(options)})"


def _in_class(letter: str) -> str:
    return f"\\{letter}" if letter in "\\]^-[&~|" else letter

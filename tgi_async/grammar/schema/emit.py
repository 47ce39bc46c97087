"""From cases back to a schema, in the few keywords that engines have.

Those are: `type`, `enum`, the bounds of numbers, strings, arrays and objects, `pattern`, `format`,
`multipleOf`, `prefixItems`, `items`, `properties`, `patternProperties`, `additionalProperties`,
`required`, `anyOf`, `$ref` to `$defs`, and `allOf` for a second pattern, format or multiple.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tgi_async.grammar.schema.case import (
    ANY,
    ANYTHING,
    Arrays,
    Case,
    Numbers,
    Objects,
    Strings,
    Wanted,
)
from tgi_async.grammar.schema.errors import UnsupportedSchema, unsupported
from tgi_async.grammar.schema.expand import Expander
from tgi_async.grammar.schema.keywords import TYPES

MAX_WANTED = 5_000
"""Different schemas of values, inside one."""
MAX_ITEMS = 1_000
"""`minItems`, `maxItems`, `minProperties`, `maxProperties`: engines unroll them."""


class Emitter:
    """Raises UnsupportedSchema for what is beyond engines, and for what no value satisfies."""

    def __init__(self, expander: Expander, root: Wanted) -> None:
        self._root = root
        self._table: dict[Wanted, list[Case]] = {}
        self._fill(expander)
        self._finite = self._satisfiable()
        self._shared: dict[Wanted, str] = {}
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
            if len(self._table) >= MAX_WANTED:
                raise UnsupportedSchema(f"the schema has more than {MAX_WANTED} different parts")
            cases = self._table[wanted] = expander.cases(wanted)
            waiting.extend(_inside(cases))

    def _satisfiable(self) -> set[Wanted]:
        """What some value of finite size is as wanted by."""
        finite: set[Wanted] = set()
        while True:
            more = {
                wanted
                for wanted, cases in self._table.items()
                if wanted not in finite and any(_ends(case, finite) for case in cases)
            }
            if not more:
                return finite
            finite |= more

    def _find_shared(self) -> None:
        """Name what is wanted in more than one place or inside itself; the rest is put in place."""
        seen: set[Wanted] = set()
        waiting = [self._root]
        while waiting:
            wanted = waiting.pop()
            cases = self._table[wanted]
            if cases == [ANY] or not any(True for _ in _inside(cases)):
                continue
            if wanted in seen:
                self._shared.setdefault(wanted, str(len(self._shared)))
                continue
            seen.add(wanted)
            waiting.extend(_inside(self._table[wanted]))

    def _place(self, wanted: Wanted) -> Any:
        if wanted not in self._finite:
            return False
        name = self._shared.get(wanted)
        if name is None:
            return self._written(wanted)
        if name not in self._definitions:
            self._definitions[name] = None  # for what is inside itself
            self._definitions[name] = self._written(wanted)
        return {"$ref": f"#/$defs/{name}"}

    def _written(self, wanted: Wanted) -> Any:
        options: list[Any] = []
        for case in self._table[wanted]:
            if not _ends(case, self._finite):
                continue
            for option in self._options(case):
                if option not in options:
                    options.append(option)
        if True in options:
            return True
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _options(self, case: Case) -> Iterator[Any]:
        if case == ANY:
            yield True
            return
        values: list[Any] = []
        types = [kind for kind in TYPES if kind in case.types]
        if "boolean" in types and len(case.booleans) == 1:
            types.remove("boolean")
            values += case.booleans
        among = case.strings.among
        rest: dict[str, Any] = {}
        if "string" in types and among is not None:
            types.remove("string")
            values += among
            rest = _string_keywords(
                Strings(formats=case.strings.formats, beyond=case.strings.beyond)
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
        names = ["integer" if kind == "number" and case.numbers.integer else kind for kind in types]
        option: dict[str, Any] = {"type": names[0] if len(names) == 1 else names}
        for kind in types:
            match kind:
                case "number":
                    keywords = _number_keywords(case.numbers)
                case "string":
                    keywords = _string_keywords(case.strings)
                case "array":
                    keywords = self._array_keywords(case.arrays)
                case "object":
                    keywords = self._object_keywords(case.objects)
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
            if bound is not None and bound > MAX_ITEMS:
                raise UnsupportedSchema(f"`{keyword}` must be at most {MAX_ITEMS}. Given: {bound}")
        keywords: dict[str, Any] = {}
        if arrays.prefix:
            keywords["prefixItems"] = [self._place(wanted) for wanted in arrays.prefix]
        if arrays.items != ANYTHING:
            keywords["items"] = self._place(arrays.items)
        if arrays.least:
            keywords["minItems"] = arrays.least
        if arrays.most is not None:
            keywords["maxItems"] = arrays.most
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


def _inside(cases: list[Case]) -> Iterator[Wanted]:
    """What is wanted of the values directly inside."""
    for case in cases:
        if "array" in case.types:
            yield from case.arrays.prefix
            yield case.arrays.items
        if "object" in case.types:
            objects = case.objects
            for name in dict.fromkeys((*objects.properties, *objects.required)):
                yield objects.wanted(name)
            yield from objects.patterns.values()
            yield objects.additional


def _ends(case: Case, finite: set[Wanted]) -> bool:
    """Whether a value can be in this case, if values can be as wanted by `finite`."""
    if case.types - {"array", "object"}:
        return True
    if "array" in case.types:
        needed = [case.arrays.item(index) for index in range(min(case.arrays.least, MAX_ITEMS))]
        if all(wanted in finite for wanted in needed):
            return True
    if "object" not in case.types:
        return False
    return all(case.objects.wanted(name) in finite for name in case.objects.required)


def _number_keywords(numbers: Numbers) -> dict[str, Any]:
    if numbers.fraction is not None:
        raise numbers.fraction.refusal()
    for beyond in numbers.beyond:
        raise beyond.refusal()
    keywords: dict[str, Any] = {}
    low, high = numbers.range
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
        keywords["maxLength"] = strings.most
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

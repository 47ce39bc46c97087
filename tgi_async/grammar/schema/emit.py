"""Write clauses as a schema, in the few keywords that engines support.

Those are: `type`, `enum`, the bounds of numbers, strings, arrays and objects, `pattern`, `format`,
`multipleOf`, `prefixItems`, `items`, `properties`, `patternProperties`, `additionalProperties`,
`required`, `anyOf`, `$ref` to `$defs`, and `allOf` for a second pattern, format or multiple.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

from tgi_async.grammar.schema.clause import (
    ANY,
    ANYTHING,
    ArrayClause,
    Clause,
    ObjectClause,
    Requirement,
    StringClause,
    least_of,
)
from tgi_async.grammar.schema.errors import Inexpressible, UnsupportedSchema
from tgi_async.grammar.schema.expand import Expander
from tgi_async.grammar.schema.keywords import MAX_COUNT, TYPES
from tgi_async.grammar.schema.merge import merged
from tgi_async.grammar.schema.numbers import number_keywords
from tgi_async.grammar.schema.regex import NotRegular
from tgi_async.grammar.schema.scalars import intersection, none_of_pattern

MAX_REQUIREMENTS = 5_000
"""Most different subschemas of one schema."""
MOST_TOGETHER = 4
"""Most patterns of one string that are left to the engine: with more it cannot tell whether any
text matches."""
MAX_ITEMS = 1_000
"""Most `minItems`, `maxItems`, `minProperties`, `maxProperties`: engines unroll them."""


class Emitter:
    """Writes schemas. Raises UnsupportedSchema for what engines do not support, and for what no
    value satisfies."""

    def __init__(self, expander: Expander, root: Requirement) -> None:
        self._root = root
        self._table: dict[Requirement, list[Clause]] = {}
        self._fill(expander)
        self._finite = self._satisfiable()
        self._shared: dict[Requirement, str] = {}
        self._find_shared()
        self._definitions: dict[str, Any] = {}

    def schema(self) -> dict[str, Any] | bool:
        """Return the schema of the root."""
        if self._root not in self._finite:
            raise UnsupportedSchema("no value satisfies the schema")
        schema: dict[str, Any] | bool = self._place(self._root)
        if not self._definitions or isinstance(schema, bool):
            return schema
        return merged(self._definitions, schema)

    def _fill(self, expander: Expander) -> None:
        waiting = [self._root]
        while waiting:
            requirement = waiting.pop()
            if requirement in self._table:
                continue
            if len(self._table) >= MAX_REQUIREMENTS:
                raise UnsupportedSchema(
                    f"the schema has more than {MAX_REQUIREMENTS} different parts"
                )
            clauses = self._table[requirement] = expander.clauses(requirement)
            waiting.extend(_inside(clauses))

    def _satisfiable(self) -> set[Requirement]:
        """Return the requirements that some value of finite size satisfies."""
        finite: set[Requirement] = set()
        while True:
            more = {
                requirement
                for requirement, clauses in self._table.items()
                if requirement not in finite and any(_ends(clause, finite) for clause in clauses)
            }
            if not more:
                return finite
            finite |= more

    def _find_shared(self) -> None:
        """Name requirements that occur in several places or inside themselves; the others are
        inlined."""
        seen: set[Requirement] = set()
        waiting = [self._root]
        while waiting:
            requirement = waiting.pop()
            clauses = self._table[requirement]
            if clauses == [ANY] or not any(True for _ in _inside(clauses)):
                continue
            if requirement in seen:
                self._shared.setdefault(requirement, str(len(self._shared)))
                continue
            seen.add(requirement)
            waiting.extend(_inside(self._table[requirement]))

    def _place(self, requirement: Requirement) -> Any:
        if requirement not in self._finite:
            return False
        name = self._shared.get(requirement)
        if name is None:
            return self._written(requirement)
        if name not in self._definitions:
            self._definitions[name] = None  # for what contains itself
            try:
                self._definitions[name] = self._written(requirement)
            except Inexpressible:
                del self._definitions[name]
                raise
        return {"$ref": f"#/$defs/{name}"}

    def _written(self, requirement: Requirement) -> Any:
        options: list[Any] = []
        lost: dict[str, Inexpressible] = {}
        kept: set[str] = set()
        for clause in self._table[requirement]:
            if not _ends(clause, self._finite):
                continue
            for kind, option in self._options(clause):
                if isinstance(option, Inexpressible):
                    lost.setdefault(kind, option)
                    continue
                kept |= {kind} if kind else clause.types
                if option not in options:
                    options.append(option)
        for kind, error in lost.items():
            if kind not in kept:
                raise error
        if True in options:
            return True
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _options(self, clause: Clause) -> Iterator[tuple[str, Any]]:
        """Return schemas of which a value must satisfy one, each with its type, empty for several.

        For what cannot be written, the reason.
        """
        if clause == ANY:
            yield "", True
            return
        values: list[Any] = []
        types = [kind for kind in TYPES if kind in clause.types]
        if "boolean" in types and len(clause.booleans) == 1:
            types.remove("boolean")
            values += clause.booleans
        among = clause.strings.among
        if "string" in types and among is not None and not _is_tested(clause.strings):
            types.remove("string")
            values += among
        if values and "null" in types:
            types.remove("null")
            values.append(None)
        together: dict[str, Any] = {}
        names: list[str] = []
        for kind in types:
            try:
                several = self._keywords(kind, clause)
            except Inexpressible as error:
                yield kind, error
                continue
            name = "integer" if kind == "number" and clause.numbers.integer else kind
            if len(several) > 1 or "enum" in several[0]:
                yield from ((kind, {"type": name, **keywords}) for keywords in several)
                continue
            further = several[0].pop("allOf", [])
            together |= several[0]
            names.append(name)
            if further:
                together.setdefault("allOf", []).extend(further)
        if values:
            yield "", {"enum": values}
        if names:
            yield "", {"type": names[0] if len(names) == 1 else names, **together}

    def _keywords(self, kind: str, clause: Clause) -> list[dict[str, Any]]:
        """Return the keywords of values of one type, in alternatives. Raises UnsupportedSchema."""
        match kind:
            case "number":
                return number_keywords(clause.numbers)
            case "string":
                return [_string_keywords(clause.strings)]
            case "array":
                return [self._array_keywords(clause.arrays)]
            case "object":
                return [self._object_keywords(clause.objects)]
        return [{}]

    def _array_keywords(self, arrays: ArrayClause) -> dict[str, Any]:
        for beyond in arrays.beyond:
            raise beyond.refusal()
        for keyword, bound in (("minItems", arrays.least), ("maxItems", arrays.most)):
            if bound is not None and bound > MAX_ITEMS and keyword == "minItems":
                raise UnsupportedSchema(f"`{keyword}` must be at most {MAX_ITEMS}. Given: {bound}")
        keywords: dict[str, Any] = {}
        if arrays.prefix:
            keywords["prefixItems"] = [self._place(requirement) for requirement in arrays.prefix]
        if arrays.items != ANYTHING:
            keywords["items"] = self._place(arrays.items)
        if arrays.least:
            keywords["minItems"] = arrays.least
        most = arrays.most
        if arrays.unique and most != 1:
            keywords["uniqueItems"] = True
            most = least_of(most, self._different(arrays))
        if most is not None:
            keywords["maxItems"] = min(most, MAX_ITEMS)
        return keywords

    def _different(self, arrays: ArrayClause) -> int | None:
        """Return how many different items there can be; None: many."""
        if arrays.prefix:
            return None
        count = 0
        for clause in self._table[arrays.items]:
            if not _ends(clause, self._finite):
                continue
            for kind in clause.types:
                n = _how_many(kind, clause)
                if n is None:
                    return None
                count += n
        return count

    def _object_keywords(self, objects: ObjectClause) -> dict[str, Any]:
        for beyond in objects.beyond:
            raise beyond.refusal()
        names = dict.fromkeys((*objects.properties, *objects.required))
        properties = {name: self._place(objects.requirement(name)) for name in names}
        patterns = {
            pattern: self._place(requirement) for pattern, requirement in objects.patterns.items()
        }
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
        if max(objects.least, objects.most or 0) > MAX_ITEMS:
            at = objects.bounded_at
            raise UnsupportedSchema(f"the number of properties at {at} must be at most {MAX_ITEMS}")
        if objects.least:
            keywords["minProperties"] = objects.least
        if objects.most is not None:
            keywords["maxProperties"] = objects.most
        return keywords


def _inside(clauses: list[Clause]) -> Iterator[Requirement]:
    """Return the requirements of the values directly inside."""
    for clause in clauses:
        if "array" in clause.types:
            yield from clause.arrays.prefix
            yield clause.arrays.items
        if "object" in clause.types:
            objects = clause.objects
            for name in dict.fromkeys((*objects.properties, *objects.required)):
                yield objects.requirement(name)
            yield from objects.patterns.values()
            yield objects.additional


def _ends(clause: Clause, finite: set[Requirement]) -> bool:
    """Return whether a value can be in this clause, if values exist for the requirements
    `finite`."""
    if clause.types - {"array", "object"}:
        return True
    if "array" in clause.types:
        needed = [clause.arrays.item(index) for index in range(min(clause.arrays.least, MAX_ITEMS))]
        if all(requirement in finite for requirement in needed):
            return True
    if "object" not in clause.types:
        return False
    objects = clause.objects
    others = (objects.additional, *objects.patterns.values())
    if objects.least > len(objects.required) and finite.isdisjoint(others):
        return False
    return all(objects.requirement(name) in finite for name in objects.required)


def _how_many(kind: str, clause: Clause) -> int | None:
    """Return the number of values of a type, or a larger one; None: many."""
    match kind:
        case "null":
            return 1
        case "boolean":
            return len(clause.booleans)
        case "string" if clause.strings.among is not None:
            return len(clause.strings.among)
        case "number":
            low, high = clause.numbers.range
            steps = [Fraction(str(step)) for step in clause.numbers.multiples]
            if clause.numbers.integer or low == high:
                steps.append(Fraction(1))
            if low is None or high is None or not steps:
                return None
            return int((Fraction(str(high)) - Fraction(str(low))) / max(steps)) + 1
        case "array" if clause.arrays.most == 0:
            return 1
    return None


def _is_tested(strings: StringClause) -> bool:
    """Return whether only the engine can tell which texts satisfy the clause."""
    return bool(strings.formats or strings.beyond)


def _string_keywords(strings: StringClause) -> dict[str, Any]:
    for _, beyond in strings.beyond:
        raise beyond.refusal()
    keywords: dict[str, Any] = {}
    if strings.among is not None:
        keywords["enum"] = list(strings.among)
    if strings.least:
        keywords["minLength"] = strings.least
    if strings.most is not None:
        keywords["maxLength"] = min(strings.most, MAX_COUNT)
    patterns = [pattern for pattern, _ in strings.patterns]
    if strings.none_of:
        patterns.append(none_of_pattern(strings.none_of))
    if len(patterns) > MOST_TOGETHER:
        with suppress(NotRegular):
            patterns = [intersection(tuple(patterns))]
    demands = [("pattern", pattern) for pattern in patterns]
    demands += [("format", name) for name in strings.formats]
    for keyword, value in demands:
        if keyword in keywords:
            keywords.setdefault("allOf", []).append({keyword: value})
        else:
            keywords[keyword] = value
    return keywords

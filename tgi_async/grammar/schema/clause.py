"""One clause of a schema: types, and the constraints on values of each type.

A schema is a list of clauses, of which a value must be in at least one. Two clauses that a value
must both be in are one clause again, so `allOf` needs no keyword of its own, and what is not needed
(`not`, `if`, `oneOf`, ...) is gone once a schema has become clauses.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

from tgi_async.grammar.schema.document import SchemaNode
from tgi_async.grammar.schema.errors import Inexpressible, UnsupportedSchema, unsupported
from tgi_async.grammar.schema.keywords import TYPES

Requirement = tuple[tuple[SchemaNode, bool], ...]
"""Schemas that a value must satisfy, or with False must not. Empty: any value."""

ANYTHING: Requirement = ()
NOTHING: Requirement = ((SchemaNode(False, "#", ""), True),)


def both(left: Requirement, right: Requirement) -> Requirement:
    """Return both requirements together."""
    if NOTHING[0] in left or NOTHING[0] in right:
        return NOTHING
    return left + tuple(one for one in right if one not in left)


def stricter(left: Requirement, right: Requirement) -> bool:
    """Return whether the left one implies the right one."""
    return left == NOTHING or all(one in left for one in right)


@dataclass(frozen=True, slots=True)
class UnsupportedKeyword:
    """A constraint on values of a type that no engine supports; refused if it stays."""

    keyword: str
    pointer: str
    why: str

    def refusal(self) -> Inexpressible:
        return Inexpressible(str(unsupported(self.keyword, self.pointer, self.why)))


@dataclass(frozen=True, slots=True)
class NumberClause:
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    """`exclusiveMinimum`"""
    below: float | None = None
    integer: bool = False
    multiples: tuple[float, ...] = ()
    not_multiples: tuple[float, ...] = ()
    """The number is a multiple of none of these."""

    def intersect(self, other: NumberClause) -> NumberClause:
        return NumberClause(
            most_of(self.minimum, other.minimum),
            least_of(self.maximum, other.maximum),
            most_of(self.above, other.above),
            least_of(self.below, other.below),
            self.integer or other.integer,
            self.multiples + tuple(one for one in other.multiples if one not in self.multiples),
            self.not_multiples
            + tuple(one for one in other.not_multiples if one not in self.not_multiples),
        )

    @property
    def range(self) -> tuple[float | None, float | None]:
        """Least and most; for integers both are integers, and inclusive."""
        low, high = most_of(self.minimum, self.above), least_of(self.maximum, self.below)
        if self.integer:
            if low is not None:
                low = math.floor(low) + 1 if low == self.above else math.ceil(low)
            if high is not None:
                high = math.ceil(high) - 1 if high == self.below else math.floor(high)
        return low, high

    @property
    def empty(self) -> bool:
        if self.integer and 1 in self.not_multiples:
            return True
        low, high = self.range
        if low is None or high is None:
            return False
        if low > high or (low == high and not self.integer and high in (self.above, self.below)):
            return True
        if self.multiples:
            step = Fraction(str(self.multiples[0]))
            first = math.ceil(Fraction(str(low)) / step) * step
            if low in (self.above,) and first == Fraction(str(low)):
                first += step
            last = Fraction(str(high))
            return first > last or (first == last and high == self.below)
        return False


@dataclass(frozen=True, slots=True)
class StringClause:
    least: int = 0
    most: int | None = None
    patterns: tuple[tuple[str, str], ...] = ()
    """Patterns, each with its place."""
    formats: tuple[str, ...] = ()
    among: tuple[str, ...] | None = None
    """Only these values, if any are named."""
    none_of: tuple[str, ...] = ()
    negated: tuple[str, ...] = ()
    """Patterns and formats that must not match; those that are supported are in `patterns` too."""
    beyond: tuple[tuple[str | None, UnsupportedKeyword], ...] = ()
    """Patterns that must not match; None: what cannot even be tested."""

    def intersect(self, other: StringClause) -> StringClause:
        among = self.among
        if among is None:
            among = other.among
        elif other.among is not None:
            among = tuple(one for one in among if one in other.among)
        merged = StringClause(
            max(self.least, other.least),
            least_of(self.most, other.most),
            self.patterns + tuple(one for one in other.patterns if one not in self.patterns),
            self.formats + tuple(one for one in other.formats if one not in self.formats),
            among,
            self.none_of + other.none_of,
            self.negated + other.negated,
            self.beyond + other.beyond,
        )
        return merged._filtered() if among is not None else merged

    def _filtered(self) -> StringClause:
        assert self.among is not None
        tested = all(pattern is not None for pattern, _ in self.beyond)
        kept = tuple(
            text
            for text in self.among
            if text not in self.none_of
            and self.least <= len(text)
            and (self.most is None or len(text) <= self.most)
            and all(matches(pattern, text, at) for pattern, at in self.patterns)
            and not any(
                pattern is not None and matches(pattern, text, beyond.pointer)
                for pattern, beyond in self.beyond
            )
        )
        return StringClause(formats=self.formats, among=kept, beyond=() if tested else self.beyond)

    @property
    def empty(self) -> bool:
        if self.among is not None:
            return not self.among
        if self.negated and (
            any(pattern in self.negated for pattern, _ in self.patterns)
            or any(name in self.negated for name in self.formats)
        ):
            return True
        return self.most is not None and self.least > self.most


@dataclass(frozen=True, slots=True)
class SomeItems:
    """How many items, from `start` on, satisfy a requirement."""

    requirement: Requirement
    negated: Requirement
    """The requirement of the other items."""
    least: int = 1
    most: int | None = None
    start: int = 0


@dataclass(frozen=True, slots=True)
class SomeProperty:
    """At least one property but these, or of those that a pattern matches, satisfies a
    requirement."""

    requirement: Requirement
    within: str | None = None
    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArrayClause:
    prefix: tuple[Requirement, ...] = ()
    items: Requirement = ANYTHING
    least: int = 0
    most: int | None = None
    beyond: tuple[UnsupportedKeyword, ...] = ()
    evaluated: int | None = 0
    """How many items a keyword has evaluated; None: all."""
    some: tuple[SomeItems, ...] = ()
    unique: bool = False

    def item(self, index: int) -> Requirement:
        return self.prefix[index] if index < len(self.prefix) else self.items

    def intersect(self, other: ArrayClause) -> ArrayClause:
        length = max(len(self.prefix), len(other.prefix))
        evaluated = (
            None
            if self.evaluated is None or other.evaluated is None
            else max(self.evaluated, other.evaluated)
        )
        return ArrayClause(
            tuple(both(self.item(index), other.item(index)) for index in range(length)),
            both(self.items, other.items),
            max(self.least, other.least),
            least_of(self.most, other.most),
            self.beyond + other.beyond,
            evaluated,
            self.some + tuple(one for one in other.some if one not in self.some),
            self.unique or other.unique,
        )

    @property
    def empty(self) -> bool:
        return self.most is not None and self.least > self.most


@dataclass(frozen=True, slots=True)
class ObjectClause:
    properties: dict[str, Requirement] = field(default_factory=dict)
    patterns: dict[str, Requirement] = field(default_factory=dict)
    additional: Requirement = ANYTHING
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    beyond: tuple[UnsupportedKeyword, ...] = ()
    bounded_at: str = "#"
    """Place of `minProperties` or `maxProperties`."""
    some: tuple[SomeProperty, ...] = ()
    further: int = 0
    """How many properties without a name here there must be."""
    names_seen: tuple[str, ...] = ()
    patterns_seen: tuple[str, ...] = ()
    all_seen: bool = False
    """What a keyword has evaluated, for `unevaluatedProperties`."""

    @property
    def names(self) -> list[str]:
        """The named properties."""
        return list(dict.fromkeys((*self.properties, *self.required)))

    @property
    def is_open(self) -> bool:
        """Return whether it may have properties that are not named."""
        others = (self.additional, *self.patterns.values())
        return any(requirement != NOTHING for requirement in others)

    def requirement(self, name: str) -> Requirement:
        named = self.properties.get(name)
        if not self.patterns:
            return self.additional if named is None else named
        matched = [value for pattern, value in self.patterns.items() if matches(pattern, name)]
        if named is None and not matched:
            return self.additional
        found = ANYTHING if named is None else named
        for value in matched:
            found = both(found, value)
        return found

    def intersect(self, other: ObjectClause) -> ObjectClause:
        names = dict.fromkeys((*self.properties, *other.properties))
        patterns = {}
        for pattern in dict.fromkeys((*self.patterns, *other.patterns)):
            left = self.patterns.get(pattern, self.additional)
            patterns[pattern] = both(left, other.patterns.get(pattern, other.additional))
        return ObjectClause(
            {name: both(self.requirement(name), other.requirement(name)) for name in names},
            patterns,
            both(self.additional, other.additional),
            tuple(dict.fromkeys((*self.required, *other.required))),
            max(self.least, other.least),
            least_of(self.most, other.most),
            self.beyond + other.beyond,
            self.bounded_at if self.least or self.most is not None else other.bounded_at,
            self.some + tuple(one for one in other.some if one not in self.some),
            max(self.further, other.further),
            self.names_seen + other.names_seen,
            self.patterns_seen + other.patterns_seen,
            self.all_seen or other.all_seen,
        )

    @property
    def empty(self) -> bool:
        if self.most is not None and max(self.least, len(self.required)) > self.most:
            return True
        return any(self.requirement(name) == NOTHING for name in self.required)

    def within(self, other: ObjectClause) -> bool:
        """Return whether `other` has all of these objects, as far as the constraints alone show."""
        if len(self.required) < len(other.required) or self._counts != other._counts:
            return False
        for name, wanted in other.properties.items():
            if not stricter(self.requirement(name), wanted):
                return False
        if other.additional != ANYTHING or self.patterns:
            if self.patterns != other.patterns or not stricter(self.additional, other.additional):
                return False
            if not all(
                name in other.properties or stricter(self.requirement(name), other.additional)
                for name in self.properties
            ):
                return False
        return set(other.required) <= set(self.required)

    @property
    def _counts(self) -> tuple[object, ...]:
        """Return all constraints that are not about a single property."""
        seen = (self.names_seen, self.patterns_seen, self.all_seen)
        return (*seen, self.least, self.most, self.further, self.some, self.beyond)


OBJECT = frozenset({"object"})
NO_NUMBERS, NO_STRINGS, NO_ARRAYS, NO_OBJECTS = (
    NumberClause(),
    StringClause(),
    ArrayClause(),
    ObjectClause(),
)
"""The constraints of a clause whose values are of other types."""


@dataclass(frozen=True, slots=True)
class Clause:
    types: frozenset[str] = frozenset(TYPES)
    booleans: frozenset[bool] = frozenset({True, False})
    numbers: NumberClause = NO_NUMBERS
    strings: StringClause = NO_STRINGS
    arrays: ArrayClause = NO_ARRAYS
    objects: ObjectClause = NO_OBJECTS

    def intersect(self, other: Clause) -> Clause | None:
        """Return the intersection; None: it is empty."""
        if self == ANY:
            return other.possible()
        if other == ANY:
            return self.possible()
        types = self.types & other.types
        if not types:
            return None
        numbers = strings = arrays = objects = None
        if "number" in types:
            numbers = _joined(self.numbers, other.numbers, NO_NUMBERS)
        if "string" in types:
            strings = _joined(self.strings, other.strings, NO_STRINGS)
        if "array" in types:
            arrays = _joined(self.arrays, other.arrays, NO_ARRAYS)
        if "object" in types:
            objects = _joined(self.objects, other.objects, NO_OBJECTS)
        return Clause(
            types,
            self.booleans & other.booleans,
            numbers or NO_NUMBERS,
            strings or NO_STRINGS,
            arrays or NO_ARRAYS,
            objects or NO_OBJECTS,
        ).possible()

    def possible(self) -> Clause | None:
        """Return the clause without the types that have no value; None: no value at all."""
        gone = set()
        if not self.booleans:
            gone.add("boolean")
        for kind, part in (
            ("number", self.numbers),
            ("string", self.strings),
            ("array", self.arrays),
            ("object", self.objects),
        ):
            if kind in self.types and part.empty:
                gone.add(kind)
        types = self.types - gone
        if not types:
            return None
        return self if not gone else replace(self, types=types)

    def within(self, other: Clause) -> bool:
        """Return whether `other` has all of these values, as far as the constraints alone show."""
        if self.types != OBJECT:
            return self == other
        return "object" in other.types and self.objects.within(other.objects)

    def unseen(self) -> Clause:
        """Return the clause as if no keyword had evaluated what is inside."""
        return replace(
            self,
            arrays=replace(self.arrays, evaluated=0),
            objects=replace(self.objects, names_seen=(), patterns_seen=(), all_seen=False),
        )


ANY = Clause()

AnyTypeClause = TypeVar("AnyTypeClause", NumberClause, StringClause, ArrayClause, ObjectClause)


def _joined(left: AnyTypeClause, right: AnyTypeClause, every: AnyTypeClause) -> AnyTypeClause:
    """Return both constraints at once; `every` is no constraint."""
    if left is every or left is right:
        return right
    return left if right is every else left.intersect(right)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what is read in two ways
        return re.compile(pattern, re.ASCII)


def matches(pattern: str, text: str, pointer: str = "#") -> bool:
    """Return a predicate: whether `pattern` matches somewhere in a text. Raises
    UnsupportedSchema."""
    try:
        return _compiled(pattern).search(text) is not None
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise UnsupportedSchema(
            f"the regular expression {pattern[:100]!r} at {pointer} cannot be tested: {error}"
        ) from error


Bound = TypeVar("Bound", int, float)


def most_of(left: Bound | None, right: Bound | None) -> Bound | None:
    if left is None or right is None:
        return right if left is None else left
    return max(left, right)


def least_of(left: Bound | None, right: Bound | None) -> Bound | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)

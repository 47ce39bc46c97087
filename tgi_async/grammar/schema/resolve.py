"""Turn constraints on some items or properties into alternatives that name them.

Engines know what each item and each named property must be, not that one among them must be so.
Such a demand becomes alternatives, one for each place; where there would be too many, some are left
out: fewer values are written then, never a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations, islice
from math import comb

from tgi_async.grammar.schema.automaton import Automaton, automaton
from tgi_async.grammar.schema.clause import (
    ANYTHING,
    NOTHING,
    ArrayClause,
    Clause,
    ObjectClause,
    Requirement,
    SomeItems,
    SomeProperty,
    both,
    matches,
)
from tgi_async.grammar.schema.regex import NotRegular
from tgi_async.grammar.schema.scalars import none_of_pattern

MOST_ALTERNATIVES = 64
"""Most alternatives of one constraint."""
WINDOW = 4
"""Items that may satisfy a `contains`, beyond those that must exist."""
MOST_SUBSETS = 5
"""Optional properties of which every subset is an alternative."""


def resolved(clause: Clause) -> list[Clause]:
    """Return clauses with the same values, or fewer, without `some` of arrays and objects."""
    if clause.objects.patterns and "object" in clause.types:
        clause = replace(clause, objects=_disjoint(clause.objects))
    arrays, objects = clause.arrays, clause.objects
    bounded = objects.least or objects.most is not None
    if not arrays.some and not objects.some and not bounded:
        return [clause]
    if "array" in clause.types and arrays.some:
        kind = frozenset({"array"})
        rest = clause.types - kind
        options = [
            replace(clause, types=kind, arrays=one) for one in _arrays(arrays) if not one.empty
        ]
        more = resolved(replace(clause, types=rest, arrays=ArrayClause())) if rest else []
        return options + more
    if "object" in clause.types and (objects.some or bounded):
        kind = frozenset({"object"})
        rest = clause.types - kind
        options = [
            replace(clause, types=kind, objects=one) for one in _objects(objects) if not one.empty
        ]
        return options + ([replace(clause, types=rest, objects=ObjectClause())] if rest else [])
    return [clause]


def _disjoint(objects: ObjectClause) -> ObjectClause:
    """Return the same with patterns that match no named property, and no two of them the same other
    name.

    Engines would join their schemas, and cannot for all. Large automata are left to them.
    """
    named = [name for name in objects.names if any(matches(one, name) for one in objects.patterns)]
    if not named and len(objects.patterns) == 1:
        return objects
    if len(named) > MOST_ALTERNATIVES:
        return objects
    regions: list[tuple[Automaton, str | None, Requirement]] = []
    try:
        for pattern, requirement in objects.patterns.items():
            rest = automaton(pattern)
            name: str | None = pattern
            if any(matches(pattern, one) for one in named):
                rest, name = rest.intersect(automaton(none_of_pattern(tuple(named)))), None
            split: list[tuple[Automaton, str | None, Requirement]] = []
            for known, known_name, known_requirement in regions:
                common = known.intersect(rest)
                if common.is_empty:
                    split.append((known, known_name, known_requirement))
                    continue
                split.append((common, None, both(known_requirement, requirement)))
                left = known.intersect(rest.negated())
                if not left.is_empty:
                    split.append((left, None, known_requirement))
                rest, name = rest.intersect(known.negated()), None
            if not rest.is_empty:
                split.append((rest, name, requirement))
            regions = split
            if len(regions) > MOST_ALTERNATIVES:
                return objects
        written = {name or found.pattern(): needed for found, name, needed in regions}
    except NotRegular:
        return objects  # the engine says what it cannot do
    properties = {name: objects.requirement(name) for name in objects.names}
    return replace(objects, properties=properties, patterns=written)


def _arrays(arrays: ArrayClause) -> list[ArrayClause]:
    found = [replace(arrays, some=())]
    for some in arrays.some:
        found = [
            merged
            for one in found
            for option in islice(_places(some, one), MOST_ALTERNATIVES)
            if not (merged := one.intersect(option)).empty
        ][: 4 * MOST_ALTERNATIVES]
    return found


def _places(some: SomeItems, arrays: ArrayClause) -> Iterator[ArrayClause]:
    least, most = some.least, some.most
    if most is not None and least > most:
        return
    chosen = least if most is None else most
    window = chosen + WINDOW
    if arrays.most is not None:
        window = min(window, max(0, arrays.most - some.start))
    while window > chosen and comb(window, chosen) * comb(chosen, least) > MOST_ALTERNATIVES:
        window -= 1
    if most is not None and window < chosen:  # all may be so, as far as the array goes
        chosen, window = window, window
    if window < least:
        return
    before = (ANYTHING,) * some.start
    other = ANYTHING if most is None else some.negated
    for free in combinations(range(window), chosen):
        for places in combinations(free, least):
            items = tuple(
                some.requirement if at in places else ANYTHING if at in free else other
                for at in range(window)
            )
            length = some.start + places[-1] + 1 if places else 0
            yield ArrayClause(before + items, other, length, evaluated=arrays.evaluated)


def _objects(objects: ObjectClause) -> list[ObjectClause]:
    found = [replace(objects, some=())]
    for some in objects.some:
        found = [
            option for one in found for option in islice(_holders(some, one), MOST_ALTERNATIVES)
        ][: 4 * MOST_ALTERNATIVES]
    return [option for one in found if not one.empty for option in _counted(one)]


def _holders(some: SomeProperty, objects: ObjectClause) -> Iterator[ObjectClause]:
    """Return the properties that may satisfy `some`."""

    def is_meant(name: str) -> bool:
        if some.within is not None and not matches(some.within, name):
            return False
        return name not in some.names and not any(matches(one, name) for one in some.patterns)

    named = [name for name in objects.names if is_meant(name)]
    if some.requirement == ANYTHING and any(name in objects.required for name in named):
        yield objects
        return
    for name in named:
        requirement = both(objects.requirement(name), some.requirement)
        if requirement != NOTHING:
            properties = {**objects.properties, name: requirement}
            required = tuple(dict.fromkeys((*objects.required, name)))
            yield replace(objects, properties=properties, required=required)
    if not objects.is_open:
        return
    # One that has no name here: then all of those are as demanded.
    properties = {name: objects.properties.get(name, ANYTHING) for name in objects.names}
    properties |= {name: NOTHING for name in some.names if name not in properties}
    patterns = {**objects.patterns}
    if some.within is not None:
        patterns.setdefault(some.within, objects.additional)
    for pattern, one in patterns.items():
        meant = pattern == some.within if some.within is not None else pattern not in some.patterns
        patterns[pattern] = both(one, some.requirement) if meant else NOTHING
    patterns |= dict.fromkeys(some.patterns, NOTHING)
    additional = NOTHING if some.within is not None else both(objects.additional, some.requirement)
    for name in objects.names:
        if some.within is None and name not in objects.properties:
            properties[name] = objects.additional
    option = replace(
        objects,
        properties=properties,
        patterns=patterns,
        additional=additional,
        further=max(1, objects.further),
    )
    if option.is_open:
        yield option


def _counted(objects: ObjectClause) -> list[ObjectClause]:
    """Return alternatives that engines can count: bounds only where no property is optional."""
    optional = [
        name
        for name in objects.names
        if name not in objects.required and objects.requirement(name) != NOTHING
    ]
    least = max(0, objects.least - len(objects.required))
    most = None if objects.most is None else objects.most - len(objects.required)
    free = replace(objects, least=0, most=None)
    if most is not None and most >= len(optional) and not objects.is_open:
        most = None
    if not least and most is None and not objects.further:
        return [free]
    if not optional and not objects.is_open and (least or objects.further):
        return []
    if not optional:
        return [_bounded(objects, max(least, objects.further), most)]
    found: list[ObjectClause] = []
    if most is None and not objects.further:
        for chosen in _subsets(optional, least):
            found.append(_chosen(free, chosen, ()))
        if objects.is_open:
            for size in range(min(least, MOST_SUBSETS)):
                for chosen in _subsets(optional, size):
                    one = _chosen(free, chosen, optional)
                    found.append(_bounded(one, least - size, None))
        return found[:MOST_ALTERNATIVES]
    if not objects.is_open:
        assert most is not None
        for allowed in _subsets(optional, most):
            for chosen in _subsets(list(allowed), least):
                found.append(_chosen(free, chosen, set(optional) - {*allowed}))
        return found[:MOST_ALTERNATIVES]
    sizes = range(len(optional) + 1) if len(optional) <= MOST_SUBSETS else (0, 1, len(optional))
    for size in sizes:
        if most is not None and size > most:
            continue
        for chosen in _subsets(optional, size):
            one = _chosen(free, chosen, optional)
            further = max(objects.further, least - size)
            found.append(_bounded(one, further, None if most is None else most - size))
    return [one for one in found if not one.empty][:MOST_ALTERNATIVES]


def _subsets(names: list[str], size: int) -> Iterable[tuple[str, ...]]:
    """Yield each subset of so many; of too many only contiguous ones."""
    if size > len(names):
        return ()
    if comb(len(names), size) <= MOST_ALTERNATIVES:
        return combinations(names, size)
    return [(names + names)[at : at + size] for at in range(len(names))]  # type: ignore[misc]


def _chosen(
    objects: ObjectClause, required: Iterable[str], optional: Iterable[str]
) -> ObjectClause:
    """Return the object with these required, and no other optional ones."""
    required = tuple(required)
    gone = {name: NOTHING for name in optional if name not in required}
    return replace(
        objects,
        properties={**objects.properties, **gone},
        required=(*objects.required, *required),
    )


def _bounded(objects: ObjectClause, least: int, most: int | None) -> ObjectClause:
    """Return the object with so many properties beside the required ones."""
    n = len(objects.required)
    return replace(
        objects,
        least=n + least if least else 0,
        most=None if most is None else n + most,
        further=0,
    )

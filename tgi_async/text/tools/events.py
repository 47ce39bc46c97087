"""What a model's text is made of."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple


class Prose(NamedTuple):
    """A piece of the answer in words."""

    text: str


class Thought(NamedTuple):
    """A piece of what the model thinks before it answers."""

    text: str


class CallBegun(NamedTuple):
    """A call begins."""

    name: str


class Arguments(NamedTuple):
    """A piece of the arguments of the call that began last, as JSON."""

    text: str


Event = Prose | Thought | CallBegun | Arguments


def merged(events: list[Event]) -> list[Event]:
    """Join neighbours of one kind, and leave out empty pieces."""
    kept = [event for event in events if isinstance(event, CallBegun) or event.text]
    found: list[Event] = []
    for kind, run in groupby(kept, type):
        if kind is CallBegun:
            found += run
        else:
            found.append(kind("".join([event.text for event in run])))  # type: ignore[union-attr]
    return found

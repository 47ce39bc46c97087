"""What a model's text is made of."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple


class ProsePiece(NamedTuple):
    """A piece of the answer in words."""

    text: str


class ThoughtPiece(NamedTuple):
    """A piece of what the model thinks before it answers."""

    text: str


class CallStart(NamedTuple):
    """A call begins."""

    name: str


class ArgumentsPiece(NamedTuple):
    """A piece of the arguments of the call that began last, as JSON."""

    text: str


Event = ProsePiece | ThoughtPiece | CallStart | ArgumentsPiece


def merged(events: list[Event]) -> list[Event]:
    """Join neighbours of one kind, and leave out empty pieces."""
    kept = [event for event in events if isinstance(event, CallStart) or event.text]
    found: list[Event] = []
    for kind, run in groupby(kept, type):
        if kind is CallStart:
            found += run
        else:
            found.append(kind("".join([event.text for event in run])))  # type: ignore[union-attr]
    return found

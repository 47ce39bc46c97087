"""The parts of a model's text."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple


class ProsePiece(NamedTuple):
    """A piece of the answer's prose."""

    text: str


class ThoughtPiece(NamedTuple):
    """A piece of the model's reasoning."""

    text: str


class CallStart(NamedTuple):
    """The beginning of a call."""

    name: str


class ArgumentsPiece(NamedTuple):
    """A piece of the latest call's arguments, as JSON."""

    text: str


Event = ProsePiece | ThoughtPiece | CallStart | ArgumentsPiece


def merged(events: list[Event]) -> list[Event]:
    """Join neighbours of one kind, and drop empty pieces."""
    kept = [event for event in events if isinstance(event, CallStart) or event.text]
    found: list[Event] = []
    for kind, run in groupby(kept, type):
        if kind is CallStart:
            found += run
        else:
            found.append(kind("".join([event.text for event in run])))  # type: ignore[union-attr]
    return found

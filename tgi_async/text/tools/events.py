"""What a model's text is made of."""

from __future__ import annotations

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
    """The same with neighbours of one kind put together, and without empty pieces."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, CallBegun):
            found.append(event)
        elif event.text:
            last = found[-1] if found else None
            if last is not None and type(last) is type(event) and not isinstance(last, CallBegun):
                found[-1] = type(event)(last.text + event.text)
            else:
                found.append(event)
    return found

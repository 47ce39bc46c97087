"""Parse the calls in a model's text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tgi_async.text.tools.events import ArgumentsPiece, CallStart, Event
from tgi_async.text.tools.format import ID, NAME, Format
from tgi_async.text.tools.reader import SPACE, Reader, Reading

MAX_HEADER = 256
"""Most characters between a mark and the arguments."""

_OTHER_KEYS = frozenset({"type", "id", "tool_call_id", "index"})
"""Members of a call object that are ignored."""
MAX_STOPS = 8
"""Most places in a header where arguments might begin."""


class Calls:
    """Reads calls of `functions`, names with schemas of their parameters, from a reader.

    A call is an event once its name and the beginning of its arguments are there, and cannot be
    undone.
    """

    def __init__(
        self, reader: Reader, format: Format, functions: Mapping[str, Any], *, parallel: bool
    ) -> None:
        self._reader = reader
        self._format = format
        self._functions = functions
        self._parallel = parallel
        self._n_begun = 0
        self._events: list[Event] = []
        self._arguments_from: int | None = None
        """Place from which on arguments were not emitted yet."""
        self._broken = False
        """Whether the arguments are invalid JSON, or cut off: then all up to a mark was
        consumed."""
        self._name: str | None = None
        """The function of the current call, once its name is complete."""
        self._marked = False
        """Whether a mark was found at the last place where calls were tried."""
        self._unfinished = False
        """Whether the text ended there in what may be a call."""
        self.firsts = frozenset(
            [mark[0] for mark in format.begin]
            + ([fence[0] for fence in format.fences] + ["{", "["] if format.bare else [])
        )
        """Characters that calls begin with."""

    def events(self) -> list[Event]:
        """Return the events since the last call."""
        if self._arguments_from is not None:
            self._emit(self._reader.slice(self._arguments_from))
            self._arguments_from = self._reader.at
        events, self._events = self._events, []
        return events

    def read(self) -> Reading[bool]:
        """Read the calls that begin here. False: there are none, and the consumed text is prose.

        The reader keeps the text from here on.
        """
        f, r = self._format, self._reader
        self._name = None
        r.ran_out = False
        marked = self._marked = (yield from r.literal(f.begin)) is not None
        self._unfinished = r.ran_out
        fenced = False
        if not marked:
            if not f.bare:
                return False
            fenced = (yield from r.literal(f.fences)) is not None
        listed = False
        end = 0
        while True:
            yield from r.skip()
            if not listed and not end and (yield from r.next()) == "[":
                listed = True
                r.at += 1
                continue
            r.ran_out = False
            if not (yield from self._call(marked)):
                break
            self._name = None
            r.kept = end = r.at
            if not (yield from self._another(listed)):
                break
        self._unfinished = r.ran_out
        if not end:
            return False
        if self._unfinished and r.truncated:
            self.take_unfinished()
            return True
        r.at = end
        if listed:
            yield from self._closing("]")
        if marked or fenced:
            yield from self._closing(*f.end)
        return True

    def is_unfinished(self, *, exclusive: bool) -> bool:
        """Return whether the text was cut off in a call, where none was read last.

        That is sure once its mark is whole or a function is named, and where a text that begins
        like a mark is a call (`exclusive`).
        """
        sure = self._marked or self._name is not None or (exclusive and not self._format.bare)
        return self._reader.truncated and self._unfinished and sure

    def take_unfinished(self) -> None:
        """Consume the rest of the text, a call that was cut off, and begin it if its function is
        known."""
        if self._name is not None:
            self._begin(self._name)
        self._reader.take_all()

    def _another(self, listed: bool) -> Reading[bool]:
        """Return whether a further call follows in the same place; the separator is consumed."""
        f, r = self._format, self._reader
        yield from r.skip(SPACE + ",;")
        if f.begin_call:
            at = r.at
            found = yield from r.literal(f.begin_call)
            r.at = at
            return found is not None
        c = yield from r.next()
        if f.notation is not None:
            return listed and c not in ("", "]")
        return c == "{" and (listed or f.header is None)

    def _closing(self, *marks: str) -> Reading[None]:
        """Consume one of these and white space before it, if that is what comes next."""
        if not marks:
            return
        r = self._reader
        r.kept = at = r.at
        r.ran_out = False
        yield from r.skip()
        if (yield from r.literal(marks)) is None:
            r.at = at
            if r.ran_out and r.truncated:
                r.take_all()

    def _call(self, marked: bool) -> Reading[bool]:
        """Read one call. False: there is none, and `at` is where that shows."""
        f, r = self._format, self._reader
        begun = (yield from r.literal(f.begin_call)) is not None
        if not begun and (yield from r.next()) == "{":
            return (yield from self._object(marked))
        if f.header is None or not marked:
            return False
        return (yield from self._headed(f.header))

    def _object(self, marked: bool) -> Reading[bool]:
        """Read a call as an object with a name and arguments, in any order."""
        r = self._reader
        arguments_keys = self._format.arguments_keys
        name: str | None = None
        arguments: str | None = None
        while (c := (yield from r.next())) != "}":
            # At the opening bracket, or at the comma before a member.
            if c != "{" and c != ",":
                return False
            r.at += 1
            key = yield from self._key()
            if key is None:
                return False
            if key in self._format.name_keys:
                name = yield from r.string()
                if name not in self._functions:
                    return False
                self._name = name
            elif key in arguments_keys and name is not None:
                if not (yield from self._arguments(name)):
                    return False
                if not self._broken:
                    yield from self._rest_of_object()
                return True
            elif key in arguments_keys or key in _OTHER_KEYS:
                start = r.at
                if not (yield from r.value()):
                    return False
                if key in arguments_keys:
                    arguments = r.slice(start)
            else:
                return False
            yield from r.skip()
        if name is None or (arguments is None and not marked):
            return False
        if (whole := _as_object(arguments or "{}")) is None:
            return False
        r.at += 1
        self._begin(name)
        self._emit(whole)
        return True

    def _key(self) -> Reading[str | None]:
        """Read a member's name and its colon, up to its value."""
        r = self._reader
        yield from r.skip()
        key = yield from r.string()
        yield from r.skip()
        if key is None or (yield from r.next()) != ":":
            return None
        r.at += 1
        yield from r.skip()
        return key

    def _rest_of_object(self) -> Reading[None]:
        """Read what follows the arguments, such as an id, if it ends the object."""
        r = self._reader
        r.kept = at = r.at
        yield from r.skip()
        c = yield from r.next()
        if c in ("}", ","):
            r.at += 1
            if c == "}" or (yield from r.rest_of_object()):
                return
        r.at = at

    def _headed(self, header: re.Pattern[str]) -> Reading[bool]:
        """Read a call with its name in a header before the arguments."""
        r = self._reader
        name = yield from self._named(header)
        if name is None:
            return False
        self._name = name
        notation = self._format.notation
        if notation is None:
            if not (yield from self._arguments(name)):
                return False
        else:
            if not (yield from notation.begins(r)):
                return False
            self._begin(name)
            yield from notation.read(r, self._functions[name], self._emit)
        yield from self._closing(*self._format.end_call)
        return True

    def _named(self, header: re.Pattern[str]) -> Reading[str | None]:
        """Read a header; return the function on offer that it names, or None."""
        r, notation = self._reader, self._format.notation
        stops = "{" if notation is None else notation.first
        start, n_stops = r.at, 0
        while (c := (yield from r.next())) and r.at - start < MAX_HEADER and n_stops < MAX_STOPS:
            if c in stops:
                n_stops += 1
                if found := header.fullmatch(r.slice(start)):
                    return found["name"] if found["name"] in self._functions else None
            r.at += 1
        if not c:
            self._name = self._named_in(r.slice(start))
        return None

    def _named_in(self, header: str) -> str | None:
        """Return the function named by a header that is cut off behind the name."""
        written = self._format.written.call
        for mark in (*self._format.begin_call, *self._format.begin):
            at = written.find(mark)
            written = written if at < 0 else written[at + len(mark) :]
        before, _, after = written.lstrip().partition(NAME)
        before = before.rpartition(ID)[2]
        _, named, rest = header.rpartition(before) if before else ("", True, header)
        if not named:
            return None
        stop = after[:1] or (self._format.notation.first[:1] if self._format.notation else "{")
        name, behind, _ = rest.partition(stop)
        return name if behind and name in self._functions else None

    def _arguments(self, name: str) -> Reading[bool]:
        """Read the arguments, a JSON object. False: there are none."""
        r = self._reader
        self._name = name
        if (yield from r.next()) != "{":
            start = r.at
            whole = _as_object(r.slice(start)) if (yield from r.value()) else None
            if whole is None:
                return False
            self._begin(name)
            self._emit(whole)
            return True
        ahead = 1
        while (c := (yield from r.next(ahead))) and c in SPACE:
            ahead += 1
        if c not in ('"', "}"):
            return False
        self._begin(name)
        self._arguments_from = r.at
        r.kept = None
        if not (yield from r.value()):
            self._broken = True
            yield from r.until((*self._format.end_call, *self._format.end))
        self._emit(r.slice(self._arguments_from))
        self._arguments_from = None
        return True

    def _begin(self, name: str) -> None:
        self._n_begun += 1
        self._broken = False
        if self._parallel or self._n_begun == 1:
            self._events.append(CallStart(name))

    def _emit(self, text: str) -> None:
        if self._parallel or self._n_begun == 1:
            self._events.append(ArgumentsPiece(text))


def _as_object(arguments: str) -> str | None:
    """Return an object of arguments in JSON. It may be a text that holds one, or null for none."""
    value = _loaded(arguments)
    if isinstance(value, str):
        arguments = value
        value = _loaded(arguments)
    if arguments in ("", "null"):
        return "{}"
    return arguments if isinstance(value, dict) else None


def _loaded(text: str) -> object:
    try:
        text.encode()  # an escape may make half a character
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None

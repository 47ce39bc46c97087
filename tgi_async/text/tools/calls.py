"""Reads the calls in a model's text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tgi_async.text.tools import tagged
from tgi_async.text.tools.events import Arguments, CallBegun, Event
from tgi_async.text.tools.format import Format
from tgi_async.text.tools.reader import SPACE, Reader, Reading

MOST_HEADER = 256
"""Characters between a mark and the arguments."""

_NAME_KEYS = ("name", "function")
_ARGUMENTS_KEYS = ("arguments", "parameters")


class Calls:
    """Takes calls of `functions`, names with schemas of their parameters, off a reader.

    A call counts once its name and the beginning of its arguments are there; it is an event then,
    and cannot be taken back.
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
        """From where on arguments were not passed on yet."""
        self._broken = False
        """Whether the arguments are no JSON, or cut off: then all up to a mark went with them."""
        self._name: str | None = None
        """The function of the call that is being read, once its name is whole."""
        self._marked = False
        """Whether a mark stood where calls were looked for last."""
        self._unfinished = False
        """Whether the text ended in what may be a call, there."""
        self.firsts = frozenset(
            [mark[0] for mark in format.begin]
            + ([fence[0] for fence in format.fences] + ["{", "["] if format.bare else [])
        )
        """What calls begin with."""

    def events(self) -> list[Event]:
        """What was found since the last call of this."""
        if self._arguments_from is not None:
            self._argue(self._reader.slice(self._arguments_from))
            self._arguments_from = self._reader.at
        events, self._events = self._events, []
        return events

    def read(self) -> Reading[bool]:
        """Take the calls that begin here. False: there are none, and what was taken is prose.

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
        """Whether the text was cut off in a call, where none was read last.

        That is sure once its mark is whole or a function is named, and where a text that begins
        like a mark is a call (`exclusive`).
        """
        sure = self._marked or self._name is not None or (exclusive and not self._format.bare)
        return self._reader.truncated and self._unfinished and sure

    def take_unfinished(self) -> None:
        """Take the rest of the text, which is a call that was cut off, and begin it if its function
        is known."""
        if self._name is not None:
            self._begin(self._name)
        self._reader.take_all()

    def _another(self, listed: bool) -> Reading[bool]:
        """Whether a further call follows in the same place; what parts the two is taken."""
        f, r = self._format, self._reader
        yield from r.skip(SPACE + ",;")
        if marks := f.begin_call or ((tagged.BEGIN_CALL,) if f.tagged else ()):
            at = r.at
            found = yield from r.literal(marks)
            r.at = at
            return found is not None
        return (yield from r.next()) == "{" and (listed or f.header is None)

    def _closing(self, *marks: str) -> Reading[None]:
        """Take one of these and white space before it, if that is what comes next."""
        r = self._reader
        r.kept = at = r.at
        r.ran_out = False
        yield from r.skip()
        if (yield from r.literal(marks)) is None:
            r.at = at
            if r.ran_out and r.truncated:
                r.take_all()

    def _call(self, marked: bool) -> Reading[bool]:
        """Take one call. False: there is none, and `at` is where that shows."""
        if self._format.tagged:
            return (yield from self._tagged())
        if (yield from self._reader.next()) == "{":
            return (yield from self._object(marked))
        if self._format.header is None or not marked:
            return False
        return (yield from self._headed(self._format.header))

    def _object(self, marked: bool) -> Reading[bool]:
        """A call as an object with a name and arguments, in any order."""
        r = self._reader
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
            if key in _NAME_KEYS:
                name = yield from r.string()
                if name not in self._functions:
                    return False
                self._name = name
            elif key in _ARGUMENTS_KEYS and name is not None:
                if not (yield from self._arguments(name)):
                    return False
                if not self._broken:
                    yield from self._rest_of_object()
                return True
            elif key in (*_ARGUMENTS_KEYS, "type", "id"):
                start = r.at
                if not (yield from r.value()):
                    return False
                if key in _ARGUMENTS_KEYS:
                    arguments = r.slice(start)
            else:
                return False
            yield from r.skip()
        if name is None or (arguments is None and not marked):
            return False
        if (told := _told(arguments or "{}")) is None:
            return False
        r.at += 1
        self._begin(name)
        self._argue(told)
        return True

    def _key(self) -> Reading[str | None]:
        """Take a member's name and its colon, up to its value."""
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
        """Take what follows the arguments, such as an id, if it ends the object."""
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
        """A call with its name in a header before the arguments."""
        f, r = self._format, self._reader
        yield from r.literal(f.begin_call)
        start = r.at
        while (c := (yield from r.next())) and c != "{" and r.at - start < MOST_HEADER:
            r.at += 1
        if not c:
            self._name = self._named_in(r.slice(start))
        found = header.fullmatch(r.slice(start)) if c == "{" else None
        if found is None or found["name"] not in self._functions:
            return False
        if not (yield from self._arguments(found["name"])):
            return False
        yield from self._closing(*f.end_call)
        return True

    def _named_in(self, header: str) -> str | None:
        """The function that a header names, cut off behind the name, as the format is written."""
        written = self._format.written.call
        for mark in (*self._format.begin_call, *self._format.begin):
            written = written.removeprefix(mark)
        before, _, after = written.partition("{name}")
        name, behind, _ = header.removeprefix(before).partition(after[:1] or "{")
        return name if behind and header.startswith(before) and name in self._functions else None

    def _tagged(self) -> Reading[bool]:
        """A call with its name and its arguments in tags. It counts with the first of these."""
        r = self._reader
        yield from r.literal([tagged.BEGIN_CALL])
        name = yield from tagged.tag_name(r)
        if name not in self._functions:
            return False
        assert name is not None
        self._name = name
        at = r.at
        yield from r.skip()
        if (yield from r.literal([tagged.BEGIN, tagged.END_CALL])) is None:
            return False
        r.at = at
        self._begin(name)
        yield from tagged.parameters(r, self._functions[name], self._argue)
        return True

    def _arguments(self, name: str) -> Reading[bool]:
        """Take the arguments. False: there are none."""
        r = self._reader
        self._name = name
        if (yield from r.next()) != "{":
            start = r.at
            told = _told(r.slice(start)) if (yield from r.value()) else None
            if told is None:
                return False
            self._begin(name)
            self._argue(told)
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
        self._argue(r.slice(self._arguments_from))
        self._arguments_from = None
        return True

    def _begin(self, name: str) -> None:
        self._n_begun += 1
        self._broken = False
        if self._parallel or self._n_begun == 1:
            self._events.append(CallBegun(name))

    def _argue(self, text: str) -> None:
        if self._parallel or self._n_begun == 1:
            self._events.append(Arguments(text))


def _told(arguments: str) -> str | None:
    """An object of arguments in JSON. It may be a text that holds one, or null for none."""
    value = _loaded(arguments)
    if isinstance(value, str):
        arguments = value
        value = _loaded(arguments)
    if arguments in ("", "null"):
        return "{}"
    return arguments if isinstance(value, dict) else None


def _loaded(text: str) -> object:
    try:
        text.encode()  # what an escape made may be half a character
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None

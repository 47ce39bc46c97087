"""From a model's text, as it comes, to prose, thoughts and calls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tgi_async.text.tools.calls import Calls
from tgi_async.text.tools.events import Event, Prose, Thought, merged
from tgi_async.text.tools.format import Format
from tgi_async.text.tools.reader import SPACE, Reader, Reading

Held = Literal["calls", "either"]
"""What a grammar may hold a text to."""

_WORD = re.compile(r"[^ \t\n\r]+")


class Marks(NamedTuple):
    """Around what a model thinks before it answers."""

    begin: str
    end: str


class Parser:
    """Reads one answer.

    `functions` may be called, names with schemas of their parameters: whatever looks like a call
    of another is prose, and all is where `format` is None. `thinking` are the marks of the model's
    thoughts, if it has such, which begin in the prompt if `opened`. Without `parallel`, calls after
    the first one are left out. `held` is what a grammar holds the text behind the thoughts to, if
    anything: calls and nothing else, or calls or a text without any.

    Nothing else of the text is dropped but the marks of calls and thoughts, what parts calls, white
    space around, and a call that was cut off before its function was known.
    """

    def __init__(
        self,
        format: Format | None,
        functions: Mapping[str, Any] = MappingProxyType({}),
        *,
        thinking: Marks | None = None,
        opened: bool = False,
        parallel: bool = True,
        held: Held | None = None,
    ) -> None:
        self._reader = Reader()
        self._held = held
        self.in_call = held == "calls"
        """Whether what came last is a call, or the beginning of one."""
        self._calls = None
        if format is not None:
            self._calls = Calls(self._reader, format, functions, parallel=parallel)
        self._firsts = self._calls.firsts if self._calls else frozenset[str]()
        self._words = re.compile(rf"[^ \t\n\r{re.escape(''.join(sorted(self._firsts)))}]+")
        self._events: list[Event] = []
        self._space = ""
        """White space that is part of the prose only if prose is on both sides of it."""
        self._after_mark = False
        """Whether what came last, but for white space, was no prose."""
        self.thinking: bool | None = False if thinking is None else None
        """Whether what came last belongs to the thoughts; None: it is too early to say."""
        self._work = self._run(thinking, opened)
        next(self._work)

    def feed(self, text: str) -> list[Event]:
        """More of the text; what it completes."""
        self._reader.feed(text)
        return self._go_on()

    def end(self, *, truncated: bool = False) -> list[Event]:
        """Nothing follows; what was held back. `truncated`: not because the model ended there."""
        self._reader.end(truncated=truncated or self._held is not None)
        return self._go_on()

    def _go_on(self) -> list[Event]:
        next(self._work, None)
        self._take_calls()
        events, self._events = self._events, []
        return merged(events)

    def _take_calls(self) -> None:
        if self._calls is not None:
            self._events += self._calls.events()

    def _run(self, thinking: Marks | None, opened: bool) -> Reading[None]:
        yield
        if thinking is not None:
            yield from self._thoughts(thinking, opened)
        yield from self._prose()

    def _thoughts(self, marks: Marks, opened: bool) -> Reading[None]:
        r = self._reader
        r.kept = start = r.at
        yield from r.skip()
        begun = (yield from r.literal([marks.begin])) is not None
        if not begun and not opened:
            self.thinking = False
            r.at = start
            r.kept = None
            return
        r.kept = None
        self.thinking = True
        yield from r.skip()
        space = ""
        while c := (yield from r.next()):
            if c in SPACE:
                r.at += 1
                space += c
                continue
            if c == marks.end[0] and (yield from r.literal([marks.end])) is not None:
                break
            start = r.at
            r.at += 1
            r.run(_WORD)
            word = r.slice(start)
            if (found := word.find(marks.end[0], 1)) > 0:
                r.at = start + found  # the mark may be there
            self._events.append(Thought(space + r.slice(start)))
            space = ""
        self.thinking = False
        self._after_mark = True

    def _prose(self) -> Reading[None]:
        r = self._reader
        calls, words = self._calls, self._words
        while c := (yield from r.next()):
            if c in SPACE:
                self._space += c
                r.at += 1
                continue
            start = r.at
            if calls is not None and c in self._firsts:
                r.kept = start
                read = yield from calls.read()
                exclusive = self.in_call or self._held is not None
                if not read and calls.is_unfinished(exclusive=exclusive):
                    calls.take_unfinished()
                    read = True
                if read:
                    r.kept = None
                    self._take_calls()
                    self._space = ""
                    self._after_mark = self.in_call = True
                    if self._held is not None:
                        self._held = "calls"
                    continue
                r.at = max(r.at, start + 1)
            else:
                r.run(words)
            if self._held == "either":
                calls, words = None, _WORD
            self._say(r.slice(start))
            r.kept = None
        if not self._after_mark:
            self._events.append(Prose(self._space))

    def _say(self, text: str) -> None:
        if self._held == "calls":
            return
        self.in_call = False
        space = "" if self._after_mark else self._space
        self._events.append(Prose(space + text))
        self._space = ""
        self._after_mark = False

"""Parse a model's text, in pieces, to prose, reasoning and calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Protocol

from tgi_async.text.tools.calls import Calls
from tgi_async.text.tools.events import Event, ProsePiece, ThoughtPiece, merged
from tgi_async.text.tools.format import Format, Marks, Turn
from tgi_async.text.tools.harmony import ChannelParser
from tgi_async.text.tools.reader import SPACE, Reader, Reading

Held = Literal["calls", "either", "text"]
"""What a grammar constrains a text to: calls alone, calls or a text without any, or such a text."""

_WORD = re.compile(r"[^ \t\n\r]+")


class AnswerParser(Protocol):
    """Parses one answer."""

    in_call: bool
    """Whether the latest text is a call, or the beginning of one."""
    thinking: bool | None
    """Whether the latest text belongs to the reasoning; None: not known yet. After False it does
    not change."""

    def feed(self, text: str) -> list[Event]:
        """Add a piece of the text; return what it completes."""
        ...

    def end(self, *, truncated: bool = False) -> list[Event]:
        """Return what was held back, at the end. `truncated`: the model did not end there."""
        ...


class Parser:
    """Parses one answer. See `AnswerParser`.

    `functions` may be called, names with schemas of their parameters: whatever looks like a call
    of another is prose, and all is where `format` is None. `thoughts` are the marks of the model's
    thoughts, if it has such, which begin in the prompt if `opened`; `dropped` are marks without
    content. Without `parallel`, calls after the first one are left out. `held` is how a grammar
    constrains the text after the reasoning.

    Only marks, separators of calls, white space around these, and a call that was cut off before
    its function was known are dropped.
    """

    def __init__(
        self,
        format: Format | None,
        functions: Mapping[str, Any] = MappingProxyType({}),
        *,
        thoughts: Marks | None = None,
        opened: bool = False,
        dropped: Sequence[str] = (),
        parallel: bool = True,
        held: Held | None = None,
    ) -> None:
        self._reader = Reader()
        self._thoughts_in = thoughts
        self._held = held
        self.in_call = held == "calls"
        self._calls = None
        if format is not None:
            self._calls = Calls(self._reader, format, functions, parallel=parallel)
        self._marks = dropped
        self._firsts = (self._calls.firsts if self._calls else frozenset()) | {
            mark[0] for mark in self._marks
        }
        self._words = re.compile(rf"[^ \t\n\r{re.escape(''.join(sorted(self._firsts)))}]+")
        self._events: list[Event] = []
        self._space: list[str] = []
        """White space that is part of the prose only if prose is on both sides of it."""
        self._after_mark = False
        """Whether the latest text, but for white space, was not prose."""
        self.thinking: bool | None = False if thoughts is None else None
        self._work = self._run(opened)
        next(self._work)

    def feed(self, text: str) -> list[Event]:
        """See `AnswerParser`."""
        self._reader.feed(text)
        return self._go_on()

    def end(self, *, truncated: bool = False) -> list[Event]:
        """See `AnswerParser`."""
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

    def _run(self, opened: bool) -> Reading[None]:
        yield
        if self._thoughts_in is not None:
            yield from self._thoughts(self._thoughts_in, opened)
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
                space += yield from r.whitespace()
                continue
            if c == marks.end[0] and (yield from r.literal([marks.end])) is not None:
                break
            start = r.at
            r.at += 1
            r.run(_WORD)
            word = r.slice(start)
            if (found := word.find(marks.end[0], 1)) > 0:
                r.at = start + found  # the mark may be there
            self._events.append(ThoughtPiece(space + r.slice(start)))
            space = ""
        self.thinking = False
        self._after_mark = True

    def _prose(self) -> Reading[None]:
        r = self._reader
        while c := (yield from r.next()):
            if c in SPACE:
                self._space.append((yield from r.whitespace()))
                continue
            start = r.at
            if c in self._firsts:
                r.kept = start
                if (yield from self._dropped()):
                    r.kept = None
                    self._space.clear()
                    self._after_mark = True
                    continue
                r.at = max(r.at, start + 1)
            else:
                r.run(self._words)
            if self._held in ("either", "text"):
                self._calls, self._words, self._firsts = None, _WORD, frozenset()
            self._say(r.slice(start))
            r.kept = None
        if not self._after_mark:
            self._events.append(ProsePiece("".join(self._space)))

    def _dropped(self) -> Reading[bool]:
        """Consume what begins here, if it is not prose: calls, or a mark around prose."""
        r, calls = self._reader, self._calls
        start = r.at
        if calls is None or (yield from r.next()) not in calls.firsts:
            return (yield from r.literal(self._marks)) is not None
        read = yield from calls.read()
        if not read and r.at == start and (yield from r.literal(self._marks)) is not None:
            return True
        exclusive = self.in_call or self._held is not None
        if not read and calls.is_unfinished(exclusive=exclusive):
            calls.take_unfinished()
            read = True
        if read:
            self._take_calls()
            self.in_call = True
            if self._held is not None:
                self._held = "calls"
        return read

    def _say(self, text: str) -> None:
        if self._held == "calls":
            return
        self.in_call = False
        space = "" if self._after_mark else "".join(self._space)
        self._events.append(ProsePiece(space + text))
        self._space.clear()
        self._after_mark = False


def answer_parser(
    format: Format | None,
    functions: Mapping[str, Any] = MappingProxyType({}),
    *,
    turn: Turn | None = None,
    opened: bool = False,
    parallel: bool = True,
    held: Held | None = None,
) -> AnswerParser:
    """Make the parser of one answer. See `Parser`; `turn` is what else is in the answer."""
    if format is not None and format.channels:
        return ChannelParser(functions, parallel=parallel, forced=held == "calls")
    turn = turn or (format and format.turn) or Turn()
    return Parser(
        format,
        functions,
        thoughts=turn.thoughts,
        opened=opened,
        dropped=turn.dropped,
        parallel=parallel,
        held=held,
    )

"""OpenAI's harmony, which gpt-oss writes: a sequence of messages, each with a header.

    <|channel|>analysis<|message|>I need the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>
    {"city": "Seoul"}<|call|>

without the line breaks. The prompt ends with the first message's `<|start|>assistant`. The format
is described at https://github.com/openai/harmony/blob/main/docs/format.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.events import (
    ArgumentsPiece,
    CallStart,
    Event,
    ProsePiece,
    ThoughtPiece,
    merged,
)
from tgi_async.text.tools.format import Format, Marks, Turn, Written
from tgi_async.text.tools.notation import ANY_TEXT, Terms, text_up_to
from tgi_async.text.tools.reader import Reader, Reading

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
ASSISTANT = START + "assistant"
ANALYSIS = Marks(CHANNEL + "analysis" + MESSAGE, ENDS[0])
FINAL = Marks(CHANNEL + "final" + MESSAGE, ENDS[2])
MAX_HEADER = 256
"""Most characters before `MESSAGE`."""

HARMONY = Format(
    name="harmony",
    signs=((CHANNEL, MESSAGE, "functions"),),
    begin=(CHANNEL,),
    end=ENDS,
    header=re.compile(r"(?P<name>\S+)"),
    turn=Turn(thoughts=ANALYSIS, answer=FINAL.begin, dropped=(*FINAL, ASSISTANT)),
    written=Written(
        call=f"{CHANNEL}commentary to=functions.{{name}} {CONSTRAIN}json{MESSAGE}",
        end_call="",
        between=ENDS[0] + ASSISTANT,
    ),
    one_call=True,
    channels=True,
)

_RECIPIENT = re.compile(r"\bto=(?:functions\.)?(?P<name>[^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w*)")
_PLAIN = re.compile(r"[^<]+")


class ChannelParser:
    """Reads one answer in harmony. See `AnswerParser`.

    `functions` may be called, names with schemas of their parameters. A message to another
    recipient is prose as it stands, with its header. Models leave `functions.` out, and call on
    any channel.
    """

    def __init__(
        self,
        functions: Mapping[str, Any] = MappingProxyType({}),
        *,
        parallel: bool = True,
        forced: bool = False,
    ) -> None:
        """Make a parser. `forced`: a grammar constrains the text to reasoning and calls."""
        self._reader = Reader()
        self._functions = functions
        self._parallel = parallel
        self._n_calls = 0
        self.in_call = forced
        self.thinking: bool | None = None
        self._events: list[Event] = []
        self._work = self._run()
        next(self._work)

    def feed(self, text: str) -> list[Event]:
        """See `AnswerParser`."""
        self._reader.feed(text)
        return self._go_on()

    def end(self, *, truncated: bool = False) -> list[Event]:
        """See `AnswerParser`."""
        self._reader.end(truncated=truncated)
        return self._go_on()

    def _go_on(self) -> list[Event]:
        next(self._work, None)
        events, self._events = self._events, []
        return merged(events)

    def _run(self) -> Reading[None]:
        yield
        r = self._reader
        while (yield from r.next()):
            r.kept = start = r.at
            r.ran_out = False
            headed = yield from self._header()
            if not headed and r.ran_out and r.truncated:
                r.take_all()
                self._cut_off(r.slice(start))
                return
            if not headed:
                yield from r.literal([START])
            header = r.slice(start)
            r.kept = None
            if headed:
                yield from self._message(header)
            else:
                self.thinking = False
                self._events.append(ProsePiece(header))
                yield from self._text(ProsePiece)

    def _header(self) -> Reading[bool]:
        """Read a header and the mark after it. False: there is none, and the consumed text is
        prose."""
        r = self._reader
        start = r.at
        yield from r.literal([ASSISTANT])
        yield from r.skip(" ")
        found = yield from r.literal([CHANNEL, CONSTRAIN, MESSAGE, "to="])
        while found not in (None, MESSAGE):
            while (c := (yield from r.next())) and c != "<" and r.at - start < MAX_HEADER:
                r.at += 1
            found = yield from r.literal([CHANNEL, CONSTRAIN, MESSAGE])
        return found is not None

    def _message(self, header: str) -> Reading[None]:
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient is not None:
            self.thinking = False
            name = recipient["name"]
            if name in self._functions:
                self._begin(name)
                yield from self._text(ArgumentsPiece)
                return
            self._events.append(ProsePiece(header))
            yield from self._text(ProsePiece, whole=True)
        elif channel is not None and channel["name"] == "analysis":
            self.thinking = True
            yield from self._text(ThoughtPiece)
            self.thinking = None
        else:
            self.thinking = None if channel and channel["name"] == "commentary" else False
            yield from self._text(ProsePiece)

    def _text(
        self,
        kind: type[ProsePiece] | type[ThoughtPiece] | type[ArgumentsPiece],
        *,
        whole: bool = False,
    ) -> Reading[None]:
        """Read the text of a message and the mark that ends it, which is kept if `whole`."""
        r = self._reader
        said = False
        while c := (yield from r.next()):
            start = r.at
            if c == "<":
                r.ran_out = False
                if (yield from r.literal([START])) is not None:
                    r.at = start
                    break
                if (yield from r.literal(ENDS)) is not None:
                    if whole:
                        self._say(kind, r.slice(start))
                    break
                if r.ran_out and r.truncated:
                    r.take_all()
                    break
                r.at += 1
            else:
                r.run(_PLAIN)
            text = r.slice(start)
            said = said or bool(text)
            self._say(kind, text)
        if kind is ArgumentsPiece and not said and not r.truncated:
            self._say(kind, "{}")

    def _say(
        self, kind: type[ProsePiece] | type[ThoughtPiece] | type[ArgumentsPiece], text: str
    ) -> None:
        if kind is ArgumentsPiece and self._n_calls > 1 and not self._parallel:
            return
        if kind is ProsePiece:
            self.in_call = False
        self._events.append(kind(text))

    def _begin(self, name: str) -> None:
        self._n_calls += 1
        self.in_call = True
        if self._parallel or self._n_calls == 1:
            self._events.append(CallStart(name))

    def _cut_off(self, header: str) -> None:
        """Handle a text that ends in a header: begin its call if the function's name is
        complete."""
        found = _RECIPIENT.search(header)
        if found is not None and found.end() < len(header) and found["name"] in self._functions:
            self._begin(found["name"])


def after_thoughts(answer: Grammar, terms_of: Terms) -> Grammar:
    """Return `answer`, which begins with its header, after optional reasoning."""
    return terms.Sequence([terms.Repeat(_message_of("analysis", terms_of), 0, 1), answer])


def held_calls(calls: Grammar, terms_of: Terms) -> Grammar:
    """Return reasoning and prose for the user, and then the last of these, or `calls`."""
    words = [_message_of(channel, terms_of) for channel in ("analysis", "commentary")]
    final = terms.Sequence([*terms_of(FINAL.begin), terms.Regex(ANY_TEXT)])
    return terms.Sequence([terms.Repeat(terms.Choice(words)), terms.Choice([calls, final])])


def _message_of(channel: str, terms_of: Terms) -> Grammar:
    """Return a message on a channel, and what begins the next one."""
    end = terms_of(ENDS[0] + ASSISTANT)
    return terms.Sequence([*terms_of(CHANNEL + channel + MESSAGE), *text_up_to(ANY_TEXT, end)])

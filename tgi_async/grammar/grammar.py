"""Grammars, independent of an engine.

A route turns what its client asked for (a schema, a regular expression, a choice of tools) into one
of these. `encode` gives the text that is checked, cached by and sent to the workers; an engine
compiles it there (`workers.grammar.engine`).
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"')


class Term(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Common settings of all terms."""


class Json(Term, frozen=True, tag="json"):
    """One JSON value that a JSON Schema accepts, on one line.

    Items are parted by `, ` and names from values by `: `, and properties come in the order of the
    schema: so the most of a text is known before it is generated.
    """

    schema: Any
    """The schema as JSON has it: an object or a boolean."""


class Regex(Term, frozen=True, tag="regex"):
    """A text that a regular expression matches as a whole."""

    pattern: str


class Text(Term, frozen=True, tag="text"):
    """Exactly this text."""

    text: str


class Special(Term, frozen=True, tag="special"):
    """One special token of the tokenizer, by its name."""

    token: str


class Prose(Term, frozen=True, tag="prose"):
    """Any text, up to and with the first occurrence of `until`.

    Behind white space, if any, it begins with `begin`, and does not begin with `unlike`.
    """

    until: str
    begin: str = ""
    unlike: str = ""


class Sequence(Term, frozen=True, tag="sequence"):
    """One part after the other."""

    parts: list[Grammar]


class Choice(Term, frozen=True, tag="choice"):
    """One of these options."""

    options: list[Grammar]


class Repeat(Term, frozen=True, tag="repeat"):
    """`least` to `most` repetitions, with `separator` between; `most` None: any number."""

    part: Grammar
    least: int = 0
    most: int | None = None
    separator: str = ""


class ContextFree(Term, frozen=True, tag="context_free"):
    """A text of a context-free grammar that a client wrote.

    In EBNF whose rules are written `name ::= ...`, from `root` on, as llama.cpp's GBNF; else in
    Lark, from `start` on.
    """

    grammar: str

    @property
    def is_ebnf(self) -> bool:
        return "::=" in self.grammar

    @property
    def literals(self) -> list[str]:
        """Return the texts between quotation marks, roughly."""
        found = []
        for quoted in _LITERAL.findall(self.grammar):
            with suppress(msgspec.DecodeError):  # an escape that JSON does not have
                found.append(msgspec.json.decode(quoted, type=str))
        return [text for text in found if text]


class Tag(Term, frozen=True, tag="tag"):
    """`begin`, which starts with `trigger`, then the content, then `end`."""

    trigger: str
    begin: str
    content: Grammar
    end: str


class Tagged(Term, frozen=True, tag="tagged"):
    """Any text, in which each trigger begins a tag.

    `begins`: it begins with a tag. `ends`: it ends behind the first one.
    """

    tags: list[Tag]
    begins: bool = False
    ends: bool = False


Grammar = Json | Regex | Text | Special | Prose | Sequence | Choice | Repeat | ContextFree | Tagged


def encode(grammar: Grammar) -> str:
    """Encode a grammar; equal ones give equal texts. The order of a schema's properties matters,
    and is kept."""
    return msgspec.json.encode(grammar).decode()


def decode(text: str) -> Grammar:
    """Decode a grammar. Raises msgspec.DecodeError for what `encode` did not make."""
    return _decoder.decode(text)


_decoder: msgspec.json.Decoder[Grammar] = msgspec.json.Decoder(Grammar)

"""Grammars in llguidance's dialect of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llguidance import regex_to_lark

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import GrammarError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""One way to write a value: the rest of a text is then forced more often, and is not generated."""

ASCII_CLASSES = "dws"
r"""`\d`, `\w` and `\s` of a regular expression are ASCII's, as in TGI."""


def lark_of(grammar: Grammar, token_id: Callable[[str], int | None]) -> str:
    """`token_id` gives the special token of a name. Raises GrammarError."""
    return _Rules(token_id).of(grammar)


class _Rules:
    """One rule for each term that is not written in place. The first is that of the whole."""

    def __init__(self, token_id: Callable[[str], int | None]) -> None:
        self._token_id = token_id
        self._rules: list[str] = []

    def of(self, grammar: Grammar) -> str:
        start = self._body(grammar)
        return "\n".join([f"start: {start}", *self._rules])

    def _rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def _body(self, term: Grammar) -> str:
        match term:
            case terms.Json(schema):
                return self._rule(f"%json {json.dumps(_styled(schema))}")
            case terms.Regex(pattern):
                return _regex(pattern)
            case terms.Text(text):
                return json.dumps(text)
            case terms.Special(token):
                return self._special(token)
            case terms.Prose():
                return self._prose(term)
            case terms.Sequence(parts):
                return " ".join(self._part(part) for part in parts) or '""'
            case terms.Choice(options):
                if not options:
                    raise GrammarError("a choice needs an option")
                return self._rule(" | ".join(self._part(option) for option in options))
            case terms.Repeat():
                return self._repeat(term)

    def _part(self, term: Grammar) -> str:
        body = self._body(term)
        return self._rule(body) if isinstance(term, terms.Sequence) else body

    def _prose(self, term: terms.Prose) -> str:
        if not term.until:
            raise GrammarError("prose needs a text that ends it")
        body = _beginning_with(term.begin) if term.begin else "/(?s:.*)/"
        if term.unlike:
            name = f"T{len(self._rules)}"
            self._rules.append(f"{name}: {body} & ~{_beginning_with(term.unlike)}")
            body = name
        return self._rule(body, f"[suffix={json.dumps(term.until)}]")

    def _repeat(self, term: terms.Repeat) -> str:
        least, most = term.least, term.most
        if least < 0 or (most is not None and most < least):
            raise GrammarError(f"nothing can be there {least} to {most} times")
        if most == 0:
            return '""'
        part = self._rule(self._body(term.part))
        if not term.separator:
            return self._rule(f"{part}{{{least},{'' if most is None else most}}}")
        further = self._rule(f"{json.dumps(term.separator)} {part}")
        bounds = f"{max(least - 1, 0)},{'' if most is None else most - 1}"
        some = self._rule(f"{part} {further}{{{bounds}}}")
        return some if least else self._rule(f"{some}?")

    def _special(self, token: str) -> str:
        found = self._token_id(token)
        if found is None:
            raise GrammarError(f"the tokenizer has no special token {token!r}")
        return f"<[{found}]>"


def _beginning_with(text: str) -> str:
    """Any text that begins with this one, behind white space."""
    exactly = _PUNCTUATION.sub(r"\\\g<0>", text).replace("\n", "\\n")
    return f"/\\s*{exactly}(?s:.*)/"


_PUNCTUATION = re.compile(r"[!-/:;=?@\[-^`{-~]")
"""Of ASCII, without what has a meaning of its own behind a backslash."""


def _styled(schema: Any) -> dict[str, Any]:
    """The schema with `JSON_STYLE`, which is read from the outermost schema only."""
    if schema is False:
        raise GrammarError("no value can satisfy the schema")
    return {"x-guidance": JSON_STYLE} | ({} if schema is True else schema)


def _regex(pattern: str) -> str:
    if not pattern:
        return '""'  # `//` begins a comment
    body: str = regex_to_lark(pattern, ASCII_CLASSES)
    return f"/{body}/".replace("\n", "\\n")

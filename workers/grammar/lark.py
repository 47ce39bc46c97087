"""Write grammars in llguidance's dialect of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.grammar.comparing_schemas import without_unique
from workers.grammar.engine import GrammarError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""One way to write a value, so that more tokens are forced and not generated."""

ASCII_CLASSES = "dws"
r"""`\d`, `\w` and `\s` of a regular expression are ASCII's, as in TGI."""


ANY_TEXT = "/(?s:.*)/"


def lark_of(grammar: Grammar, token_id: Callable[[str], int | None]) -> str:
    """Return the grammar in Lark or, where a client's own grammar is a part of it, several in JSON.

    `token_id` gives the special token of a name. Raises GrammarError.
    """
    return _Rules(token_id).of(grammar)


class _Rules:
    """One rule for each term that is not written inline. The first is the start rule."""

    def __init__(self, token_id: Callable[[str], int | None]) -> None:
        self._token_id = token_id
        self._rules: list[str] = []
        self._others: list[dict[str, str]] = []
        """Grammars that clients wrote, each with names of its own."""

    def of(self, grammar: Grammar) -> str:
        start = self._body(grammar)
        whole = "\n".join([f"start: {start}", *self._rules])
        if not self._others:
            return whole
        return json.dumps({"grammars": [{"lark_grammar": whole}, *self._others]})

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
            case terms.ContextFree():
                name = f"client{len(self._others)}"
                self._others.append({"name": name, "lark_grammar": _client_lark(term)})
                return f"@{name}"
            case terms.Tagged():
                return self._tagged(term)

    def _part(self, term: Grammar) -> str:
        body = self._body(term)
        return self._rule(body) if isinstance(term, terms.Sequence) else body

    def _prose(self, term: terms.Prose) -> str:
        if not term.until:
            raise GrammarError("prose needs a text that ends it")
        body = _beginning_with(term.begin) if term.begin else ANY_TEXT
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

    def _tagged(self, term: terms.Tagged) -> str:
        if not term.tags:
            raise GrammarError("a tagged text needs a tag")
        rests = [self._rest(tag) for tag in term.tags]

        def options(begun: list[str]) -> str:
            return self._rule(" | ".join(map(" ".join, zip(begun, rests, strict=True))))

        first = options([self._literal(tag.trigger) for tag in term.tags]) if term.begins else ""
        if term.begins and term.ends:
            return first
        further = options([self._behind_text(tag.trigger) for tag in term.tags])
        tail = self._rule(ANY_TEXT)
        if term.ends:
            return self._rule(f"{further} | {tail}")
        return self._rule(f"{first} {further}* {tail}")

    def _rest(self, tag: terms.Tag) -> str:
        """Return a tag after its trigger."""
        if not tag.trigger or not tag.begin.startswith(tag.trigger):
            raise GrammarError(f"a tag must begin with its trigger. Given: {tag.begin[:40]!r}")
        begin = self._literal(tag.begin.removeprefix(tag.trigger))
        return self._rule(f"{begin} {self._part(tag.content)} {self._literal(tag.end)}")

    def _behind_text(self, trigger: str) -> str:
        """Return any text up to the first trigger."""
        found = self._token_id(trigger)
        if found is not None:
            return f"{ANY_TEXT} <[{found}]>"
        return self._rule(ANY_TEXT, f"[suffix={json.dumps(trigger)}]")

    def _literal(self, text: str) -> str:
        """Return a text that may be a special token's name, and then is that token."""
        found = self._token_id(text) if text else None
        return json.dumps(text) if found is None else f"<[{found}]>"

    def _special(self, token: str) -> str:
        found = self._token_id(token)
        if found is None:
            raise GrammarError(f"the tokenizer has no special token {token!r}")
        return f"<[{found}]>"


def _beginning_with(text: str) -> str:
    """Return any text that begins with this one, after white space."""
    exactly = _PUNCTUATION.sub(r"\\\g<0>", text).replace("\n", "\\n")
    return f"/\\s*{exactly}(?s:.*)/"


_PUNCTUATION = re.compile(r"[!-/:;=?@\[-^`{-~]")
"""ASCII punctuation, without what has a special meaning after a backslash."""


def _styled(schema: Any) -> dict[str, Any]:
    """Return the schema with `JSON_STYLE`, which is read from the outermost schema only."""
    if schema is False:
        raise GrammarError("no value can satisfy the schema")
    return {"x-guidance": JSON_STYLE} | ({} if schema is True else without_unique(schema))


def _client_lark(term: terms.ContextFree) -> str:
    if not term.is_ebnf:
        return term.grammar
    try:
        return str(gbnf_to_lark(term.grammar))
    except Exception as error:  # the package raises bare ones too
        raise GrammarError(f"the EBNF cannot be read: {error}") from error


def _regex(pattern: str) -> str:
    if not pattern:
        return '""'  # `//` begins a comment
    body: str = regex_to_lark(pattern, ASCII_CLASSES)
    return f"/{body}/".replace("\n", "\\n")

"""Grammars in xgrammar's words: its structural tags.

https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import xgrammar

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import GrammarError
from workers.grammar.xgrammar_schema import adapted, checked

READS_LARK = hasattr(xgrammar.Grammar, "from_lark")
"""Versions from 0.2.9 on."""
MOST_TIMES = 10_000
"""Of a repetition."""
ANY_TEXT = "(?s:.*)"
LONGEST_REASON = 200


def structural_tag_of(grammar: Grammar, token_id: Callable[[str], int | None]) -> dict[str, Any]:
    """`token_id` gives the special token of a name. Raises GrammarError."""
    return {"type": "structural_tag", "format": _format(grammar, token_id)}


def _format(term: Grammar, token_id: Callable[[str], int | None]) -> dict[str, Any]:
    match term:
        case terms.Json(schema):
            return {"type": "grammar", "grammar": _ebnf_of(schema)}
        case terms.Regex(pattern):
            if not pattern:
                return _text("")
            if pattern == ANY_TEXT:
                return {"type": "any_text"}
            return {"type": "regex", "pattern": checked(pattern)}
        case terms.Text(text):
            return _text(text)
        case terms.Special(token):
            found = token_id(token)
            if found is None:
                raise GrammarError(f"the tokenizer has no special token {token!r}")
            return {"type": "token", "token": found}
        case terms.Prose(until, begin, unlike):
            if not until:
                raise GrammarError("prose needs a text that ends it")
            return {"type": "tag", "begin": begin, "content": _any_text(unlike), "end": until}
        case terms.Sequence(parts):
            elements = [_format(part, token_id) for part in parts]
            for before, element in zip(parts, elements[1:], strict=False):
                if element["type"] == "any_text" and (begins := _begins(before)):
                    element["excludes"] = begins
            return {"type": "sequence", "elements": elements} if elements else _text("")
        case terms.Choice(options):
            if not options:
                raise GrammarError("a choice needs an option")
            return {"type": "or", "elements": [_format(option, token_id) for option in options]}
        case terms.Repeat():
            return _repeat(term, token_id)
        case terms.ContextFree(grammar):
            if term.is_ebnf:
                return {"type": "grammar", "grammar": grammar}
            if not READS_LARK:
                raise GrammarError(
                    "it is in Lark, and this version of xgrammar reads EBNF (`root ::= ...`)"
                )
            return {"type": "grammar", "grammar": grammar, "syntax": "lark"}
        case terms.Tagged(tags):
            return {
                "type": "triggered_tags",
                "triggers": sorted({tag.trigger for tag in tags}),
                "tags": [
                    {
                        "type": "tag",
                        "begin": tag.begin,
                        "content": _format(tag.content, token_id),
                        "end": tag.end,
                    }
                    for tag in tags
                ],
                "at_least_one": term.begins,
                "stop_after_first": term.ends,
            }


def _any_text(unlike: str) -> dict[str, Any]:
    """What may not be at its beginning may be nowhere in it: there is no word for the beginning."""
    return {"type": "any_text", "excludes": [unlike]} if unlike else {"type": "any_text"}


def _begins(term: Grammar) -> list[str]:
    """What would make one more of a repetition, that the text after it must not have."""
    if not isinstance(term, terms.Repeat):
        return []
    options = term.part.options if isinstance(term.part, terms.Choice) else [term.part]
    firsts = [
        option.parts[0] if isinstance(option, terms.Sequence) and option.parts else option
        for option in options
    ]
    return [first.until for first in firsts if isinstance(first, terms.Prose)]


def _repeat(term: terms.Repeat, token_id: Callable[[str], int | None]) -> dict[str, Any]:
    least, most = term.least, term.most
    if least < 0 or (most is not None and most < least):
        raise GrammarError(f"nothing can be there {least} to {most} times")
    if most == 0:
        return _text("")
    part = _format(term.part, token_id)
    if not term.separator:
        return _times(part, least, most)
    further = {"type": "sequence", "elements": [_text(term.separator), part]}
    rest = _times(further, max(least - 1, 0), None if most is None else most - 1)
    some = {"type": "sequence", "elements": [part, rest]}
    return some if least else {"type": "optional", "content": some}


def _times(part: dict[str, Any], least: int, most: int | None) -> dict[str, Any]:
    if max(least, most or 0) > MOST_TIMES:
        raise GrammarError(f"nothing can be repeated more than {MOST_TIMES} times")
    if most is not None:
        return {"type": "repeat", "min": least, "max": most, "content": part}
    star = {"type": "star", "content": part}
    if not least:
        return star
    first = {"type": "repeat", "min": least, "max": least, "content": part}
    return {"type": "sequence", "elements": [first, star]}


def _text(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}


def _ebnf_of(schema: Any) -> str:
    """Raises GrammarError for what xgrammar would leave out of account."""
    written = adapted(schema)
    try:
        grammar = xgrammar.Grammar.from_json_schema(
            msgspec.json.encode(written).decode(),
            any_whitespace=False,
            separators=(", ", ": "),
            strict_mode=False,
        )
    except (RuntimeError, ValueError) as error:
        raise GrammarError(reason_of(error)) from error
    return str(grammar)


def reason_of(error: Exception) -> str:
    """xgrammar's message without the place in its source."""
    text = str(error).strip().partition("\n")[0]
    return re.sub(r"^(\[[^]]*\] )?\S+\.(cc|h):\d+: ", "", text)[:LONGEST_REASON] or "it failed"

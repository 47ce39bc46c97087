"""Engines of a small tokenizer, and texts that are run through their grammars."""

from __future__ import annotations

import atexit
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from tests.api.tiny_tokenizer import tiny_inner
from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import GrammarEngine, GrammarError, Matcher
from workers.grammar.llguidance_engine import LlguidanceEngine

MERGES = ['{"', '": ', '", "', '"}', ", ", "true", "null", "ab", "한", "12", "[]", "\\n", "a,"]
"""Tokens besides the single bytes: so tokens go across the borders of a grammar's parts."""


@cache
def tokenizer() -> tokenizers.Tokenizer:
    """Of bytes and a few longer tokens; `<|im_end|>` ends a text."""
    inner = tiny_inner()
    inner.add_tokens(MERGES)
    return inner


@cache
def folder() -> Path:
    """As a model's."""
    made = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    tokenizer().save(str(made / "tokenizer.json"))
    return made


@cache
def engine_of() -> GrammarEngine:
    return LlguidanceEngine(folder() / "tokenizer.json", vocab_size(), [end_id()])


def vocab_size() -> int:
    return int(tokenizer().get_vocab_size())


def end_id() -> int:
    found = tokenizer().token_to_id("<|im_end|>")
    assert found is not None
    return int(found)


def accepts(matcher: Matcher, text: str) -> bool:
    """Whether the text is taken, token by token, and may end there. `matcher` stays as it is."""
    matcher = matcher.copy()
    try:
        for token in tokenizer().encode(text, add_special_tokens=False).ids:
            if token not in allowed(matcher):
                return False
            matcher.advance([token])
    except GrammarError:
        return False
    return matcher.complete


def follows(engine: GrammarEngine, grammar: Grammar, text: str) -> bool:
    return accepts(engine.matcher(grammar), text)


def allowed(matcher: Matcher) -> list[int]:
    """The tokens that may come next."""
    mask = np.zeros(-(-vocab_size() // 32), np.int32)
    matcher.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def walk(matcher: Matcher, seed: int, most: int = 400) -> tuple[str, bool]:
    """A text of random tokens that the grammar allows, and whether it came to its end.

    It is in no hurry at first, and later ends what it has begun as soon as it can.
    """
    chosen = random.Random(seed)
    matcher = matcher.copy()
    tokens: list[int] = []
    while len(tokens) < most and not matcher.ended:
        options = allowed(matcher)
        if matcher.complete and chosen.random() < 0.3:
            break
        options = [token for token in options if token != end_id()]
        if not options:
            break
        closing = [token for token in options if tokenizer().id_to_token(token) in CLOSING]
        if closing and chosen.random() < len(tokens) / 60:
            options = closing
        token = chosen.choice(options)
        matcher.advance([token])
        tokens.append(token)
        forced = matcher.jump_forward_tokens()
        for token in forced:
            assert token in allowed(matcher)
            matcher.advance([token])
            tokens.append(token)
    return str(tokenizer().decode(tokens, skip_special_tokens=False)), matcher.complete


MOST_ORDERS = 50
"""Of the properties of a value, that are tried."""
CLOSING = frozenset({'"', "]", "}", '"}', "null", "[]"})


def one_line(value: Any) -> str:
    """A value as grammars have it. A number that is an integer is written as one."""
    if isinstance(value, list):
        return f"[{', '.join(map(one_line, value))}]"
    if isinstance(value, dict):
        items = (
            f"{json.dumps(name, ensure_ascii=False)}: {one_line(one)}"
            for name, one in value.items()
        )
        return f"{{{', '.join(items)}}}"
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def texts(matcher: Matcher, value: Any) -> Iterator[tuple[str, Matcher]]:
    """The texts of a value that the grammar allows next, with its properties in any order."""
    if isinstance(value, list):
        yield from _items(matcher, value, "[")
    elif isinstance(value, dict):
        yield from _properties(matcher, value, "{")
    else:
        yield from _written(matcher, one_line(value))


def _items(matcher: Matcher, items: list[Any], begun: str) -> Iterator[tuple[str, Matcher]]:
    if not items:
        yield from _written(matcher, f"{begun}]" if begun == "[" else "]")
        return
    for before, inside in _written(matcher, begun):
        for item, behind in texts(inside, items[0]):
            for rest, end in _items(behind, items[1:], ", "):
                yield f"{before}{item}{rest}", end


def _properties(
    matcher: Matcher, rest: dict[str, Any], begun: str
) -> Iterator[tuple[str, Matcher]]:
    if not rest:
        yield from _written(matcher, f"{begun}}}" if begun == "{" else "}")
    for name, value in rest.items():
        others = {other: one for other, one in rest.items() if other != name}
        for before, inside in _written(matcher, f"{begun}{one_line(name)}: "):
            for text, behind in texts(inside, value):
                for more, end in _properties(behind, others, ", "):
                    yield f"{before}{text}{more}", end


def _written(matcher: Matcher, text: str) -> Iterator[tuple[str, Matcher]]:
    behind = matcher.copy()
    try:
        for token in tokenizer().encode(text, add_special_tokens=False).ids:
            allowed(behind)  # as before each step of a text: only so much is done between two
            behind.advance([token])
    except GrammarError:
        return
    yield text, behind


def is_taken(matcher: Matcher, value: Any, schema: Any = True) -> bool:
    """Whether a value is taken token by token, its properties in one of the first orders found.

    The order of the normal `schema` comes first.
    """
    value = _ordered(value, [schema], schema)
    found = itertools.islice(texts(matcher, value), MOST_ORDERS)
    return any(accepts(matcher, text) for text, _ in found)


def _ordered(value: Any, schemas: list[Any], root: Any) -> Any:
    """The value with its properties as the first of the schemas that names them."""
    known: dict[str, list[Any]] = {}
    inner: list[Any] = []
    waiting = schemas[::-1]
    for _ in range(1000):
        one = waiting.pop() if waiting else None
        if not isinstance(one, dict):
            continue
        if "$ref" in one:
            waiting.append(root["$defs"][one["$ref"].rpartition("/")[2]])
        waiting += one.get("anyOf", [])[::-1]
        for name, sub in one.get("properties", {}).items():
            known.setdefault(name, []).append(sub)
        inner += [one.get("items"), one.get("additionalProperties"), *one.get("prefixItems", [])]
        inner += one.get("patternProperties", {}).values()
    if isinstance(value, list):
        return [_ordered(item, inner, root) for item in value]
    if isinstance(value, dict):
        names = [*(name for name in known if name in value), *value]
        return {
            name: _ordered(value[name], known.get(name, inner), root)
            for name in dict.fromkeys(names)
        }
    return value

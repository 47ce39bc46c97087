"""Engines of a small tokenizer, and texts that are run through their grammars."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from tests.api.tiny_tokenizer import tiny_inner
from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import Engine, GrammarError, Matcher
from workers.grammar.engines import engine

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
def engine_of(name: str = "llguidance") -> Engine:
    return engine(name, folder(), vocab_size(), [end_id()])


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


def follows(engine: Engine, grammar: Grammar, text: str) -> bool:
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
        forced = matcher.forced()
        for token in forced:
            assert token in allowed(matcher)
            matcher.advance([token])
            tokens.append(token)
    return str(tokenizer().decode(tokens, skip_special_tokens=False)), matcher.complete


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

"""The process that checks grammars: a line of JSON in, a line of JSON out.

A schema becomes the one that engines follow, is compiled as a worker will, and its first masks are
filled along a few texts: so that what reaches a worker has been tried here, at the same limits.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.check import CheckerStart, GrammarCheck, seconds_for
from tgi_async.grammar.grammar import Grammar
from tgi_async.grammar.schema.document import MAX_IGNORED
from tgi_async.grammar.schema.errors import InvalidSchema, SchemaError
from tgi_async.grammar.schema.normalize import normalize
from tgi_async.subprocess_pool.child import address_space, answer_lines, limit_memory
from workers.grammar.engine import GrammarEngine, GrammarError
from workers.grammar.llguidance_engine import LlguidanceEngine

MEMORY = 1 << 30
"""Limit of address space in bytes, beyond what the engine itself has."""
NICENESS = 5
"""Nice value: below the server and its workers, yet soon done where they leave a little time."""
WALKS = 3
STEPS = 24
"""Steps of each walk; the first takes the first allowed token, the others random ones."""
SLOW_MASK = 0.02
"""Seconds of processor time of a slow mask; a grammar with more than `MOST_SLOW` is refused."""
MOST_SLOW = 2
LONGEST_NAME = 64
"""Most characters of an ignored keyword; see `document.MAX_IGNORED` for how many are reported."""
LONGEST_REASON = 400
"""Most characters of a refusal."""


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer each encoded grammar with a `GrammarCheck`, until `requests` ends."""
    start = msgspec.json.decode(requests.readline(), type=CheckerStart)
    tokenizer = Path(start.model_path) / "tokenizer.json"
    engine = LlguidanceEngine(tokenizer, start.vocab_size, start.end_ids)
    words = -(-start.vocab_size // 32)
    lazy = terms.Json({"type": "array", "uniqueItems": True, "contains": {"pattern": "a|^b"}})
    check(engine, words, terms.encode(lazy))  # create what is created lazily
    if size := address_space():
        limit_memory(size + MEMORY)
    answer_lines(
        requests,
        replies,
        lambda line: msgspec.json.encode(check(engine, words, line.decode())),
        lambda line: seconds_for(len(line), start.seconds),
    )


def check(engine: GrammarEngine, words: int, encoded: str) -> GrammarCheck:
    """Check a grammar. `words` is the length of a mask."""
    try:
        ignored: dict[str, None] = {}
        grammar = _normal(terms.decode(encoded), ignored)
        _try(engine, words, grammar)
    except SchemaError as error:
        return GrammarCheck(refusal=_short(str(error)), invalid=isinstance(error, InvalidSchema))
    except GrammarError as error:
        return GrammarCheck(refusal=_short(str(error)))
    except (MemoryError, RecursionError) as error:
        return GrammarCheck(refusal=f"{type(error).__name__} while it was compiled")
    names = tuple(name[:LONGEST_NAME] for name in list(ignored)[:MAX_IGNORED])
    return GrammarCheck(terms.encode(grammar), ignored=names)


def _short(reason: str) -> str:
    """Shorten a name, as names in a schema may have any length."""
    half = LONGEST_REASON // 2
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:half]}...{reason[-half:]}"


def _normal(grammar: Grammar, ignored: dict[str, None]) -> Grammar:
    """Return the grammar with its schemas normalized; see `normalize`. Raises SchemaError."""
    match grammar:
        case terms.Json(schema):
            return terms.Json(normalize(schema, ignored))
        case terms.Sequence(parts):
            return terms.Sequence([_normal(part, ignored) for part in parts])
        case terms.Choice(options):
            return terms.Choice([_normal(option, ignored) for option in options])
        case terms.Repeat(part):
            return msgspec.structs.replace(grammar, part=_normal(part, ignored))
        case terms.Tagged(tags):
            normal_tags = [
                msgspec.structs.replace(tag, content=_normal(tag.content, ignored)) for tag in tags
            ]
            return msgspec.structs.replace(grammar, tags=normal_tags)
    return grammar


def _try(engine: GrammarEngine, words: int, grammar: Grammar) -> None:
    """Walk through a grammar. Raises GrammarError if it cannot be compiled, is slow or has a dead
    end."""
    beginning = engine.matcher(grammar)
    chosen = random.Random(0)
    slow = 0
    for walk in range(WALKS):
        matcher = beginning.copy()
        mask = np.zeros(words, np.int32)
        for _ in range(STEPS):
            if matcher.ended:
                break
            began = time.thread_time()
            matcher.fill(mask)
            slow += time.thread_time() - began > SLOW_MASK
            if slow > MOST_SLOW:
                raise GrammarError("computing the allowed tokens takes too long")
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if not len(allowed):
                raise GrammarError("it can lead to a state where no token is allowed")
            matcher.advance([int(allowed[0] if walk == 0 else chosen.choice(allowed))])
            matcher.jump_forward_tokens()


if __name__ == "__main__":
    os.nice(NICENESS)
    with open(sys.stdin.fileno(), "rb", buffering=1 << 20, closefd=False) as requests:
        serve(requests, sys.stdout.buffer)

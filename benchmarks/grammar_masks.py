"""The cost of masks in a worker, without a server."""

from __future__ import annotations

import time
from statistics import mean, median

import numpy as np

from benchmarks.grammar_texts import REGEXES, SCHEMAS
from tgi_async.grammar.grammar import Grammar, Json, Regex, encode
from tgi_async.grammar.schema.normalize import normalize
from tgi_async.wire.messages import Constraint
from workers.constraints.progress import Progress
from workers.constraints.tokens import allowed_in
from workers.constraints.vocabulary import Compiled, Vocabulary
from workers.models.embedded import prepare_embedded

VOCAB_SIZE, END = 49152, 2
TOKENS = 128
ROOMY = 1000
"""A token budget in which everything can be completed."""


def masks(rounds: int) -> None:
    """Print the microseconds of a mask, and of all of a worker's work for the next token."""
    vocabulary = Vocabulary(prepare_embedded(), VOCAB_SIZE, [END])
    grammars: dict[str, Grammar] = {name: Json(normalize(one)) for name, one in SCHEMAS.items()}
    grammars |= {name: Regex(pattern) for name, pattern in REGEXES.items()}
    every: list[float] = []
    for name, grammar in grammars.items():
        times: list[float] = []
        works: list[float] = []
        for turn in range(4 * rounds):
            times += _masks(vocabulary, grammar, turn)
            works += _works(vocabulary, grammar, turn)
        every += times
        print(f"{name:16} mask {_figures(times)}; a token's work {_figures(works)}", flush=True)
    print(f"{'all':16} mask {_figures(every)}", flush=True)


def _masks(vocabulary: Vocabulary, grammar: Grammar, seed: int) -> list[float]:
    """Return the processor times of each mask along one text, the first with this grammar."""
    draw = np.random.default_rng(seed)
    compiled = Compiled(vocabulary, encode(grammar))
    matcher, foresight = compiled.matcher(), compiled.foresight
    assert foresight is not None
    mask, node = np.zeros(VOCAB_SIZE // 32, np.int32), foresight.start
    times: list[float] = []
    while len(times) < TOKENS and not matcher.ended:
        began = time.thread_time()
        known = foresight.known_mask(node)
        tokens = [] if known is not None else matcher.jump_forward_tokens()[:1]
        if known is not None:
            np.copyto(mask, known)
        elif not tokens:
            foresight.fill(node, matcher, mask)
        times.append(1e6 * (time.thread_time() - began))
        if not tokens:
            tokens = [int(draw.choice(allowed_in(mask)))]
        if tokens[-1] == END:
            break
        matcher.advance(tokens)
        after = foresight.after(node, tokens)
        assert after is not None
        node = after
    return times


def _works(vocabulary: Vocabulary, grammar: Grammar, seed: int) -> list[float]:
    """Return the processor times from a token to the next mask, along such a text."""
    draw = np.random.default_rng(seed)
    mask = np.zeros(VOCAB_SIZE // 32, np.int32)
    encoded = encode(grammar) + " " * seed  # not one that was compiled before
    following = Progress(Constraint(encoded, ROOMY), True, mask)
    following.begin(vocabulary, [])
    times: list[float] = []
    n_tokens = 0
    while n_tokens < TOKENS:
        tokens = following.jump_forward_tokens or [int(draw.choice(allowed_in(mask)))]
        if tokens[-1] == END:
            break
        began = time.thread_time()
        following.advance(tokens)
        times.append(1e6 * (time.thread_time() - began))
        n_tokens += len(tokens)
    return times


def _figures(times: list[float]) -> str:
    p99 = sorted(times)[int(0.99 * (len(times) - 1))]
    return f"mean {mean(times):6.1f} us, p50 {median(times):6.1f} us, p99 {p99:7.1f} us"
